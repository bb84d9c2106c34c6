"""Write a randomly initialised Qwen3-VL-Embedding checkpoint with the files and layout of the real one.

It knows the architectures the tests are run on, up to the full size of the 2B. The tokenizer is a byte-level BPE
trained here, with the real special tokens. The vectors mean nothing; that they agree with transformers means all.

    python -m tests.random_checkpoint --size tiny --output DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers.utils import logging

from demo.untrained import ARCHITECTURE_2B, text_config, train_tokenizer, vision_config, write_untrained

CORPUS = [
    "system user assistant Represent the user's input. Retrieve images or text relevant to the user's query.",
    "A photograph of a golden retriever puppy. The Eiffel Tower at sunset. Two cats sleep on a red sofa.",
    "Eine Katze schläft auf dem Sofa. Un chat dort sur le canapé. Un gato duerme en el sofá.",
    "一只猫在沙发上睡觉。埃菲尔铁塔的日落。你好，世界！向量检索与图像检索。",
    "قطة تنام على الأريكة. مرحبا بالعالم. برج إيفل عند غروب الشمس.",
    "बिल्ली सोफे पर सो रही है। кошка спит на диване. ネコがソファで寝ています。 고양이가 소파에서 잔다.",
    "emoji 🐱🐶🚀🍎🚲 and numbers 0123456789 and code def f(x): return x ** 2",
]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # the proportions of the 2B: DeepStack of three, grouped queries, tied embeddings
    "tiny": {
        "text_config": text_config(128, 4, 4, 2, 32, 256, (8, 4, 4)),
        "vision_config": vision_config(64, 4, 4, 128, 128, (0, 1, 2)),
        "tie_word_embeddings": True,
    },
    # as the 8B differs from it: untied, more layers, one DeepStack feature late in the tower, no grouped queries
    "deep": {
        "text_config": text_config(64, 6, 2, 2, 32, 160, (6, 5, 5)),
        "vision_config": vision_config(48, 6, 3, 96, 64, (4,), num_position_embeddings=64),
        "tie_word_embeddings": False,
    },
    # head_dim x heads unlike the hidden size, five queries per key, two DeepStack features
    "wide": {
        "text_config": text_config(96, 3, 5, 1, 40, 128, (8, 6, 6)),
        "vision_config": vision_config(72, 3, 2, 100, 96, (1, 2), num_position_embeddings=400),
        "tie_word_embeddings": True,
    },
    "2b": ARCHITECTURE_2B,
}


def write_checkpoint(output: Path, size: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random checkpoint of `ARCHITECTURES[size]` into the folder `output` and return it."""
    tokenizer = train_tokenizer(CORPUS, vocab_size=600)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    noise = 0.0 if size == "2b" else 0.05  # so that every weight counts
    return write_untrained(output, ARCHITECTURES[size], tokenizer, seed=seed, dtype=dtype, noise=noise)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; its name should say `random`")
    parser.add_argument("--size", choices=sorted(ARCHITECTURES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    write_checkpoint(arguments.output, arguments.size, arguments.seed, getattr(torch, arguments.dtype))
    print(f"wrote a random {arguments.size} checkpoint to {arguments.output}")


if __name__ == "__main__":
    main()
