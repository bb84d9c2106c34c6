"""Train the demonstration's checkpoint from scratch: untrained weights and a tokenizer of its own, then finetune.

    python -m demo.train --data DATA --output CHECKPOINT

DATA is what `python -m demo.build` makes. Knows the model's sizes and what training is asked for; how training works is
`finetune`'s business. Run in the training environment; about an hour and a half on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from demo.build import QUERY_INSTRUCTION
from demo.paths import local_path
from demo.untrained import text_config, train_tokenizer, vision_config, write_untrained

VOCABULARY = 12_000
# Stands around every text: as often in the tokenizer's corpus as it takes for each of its words to be one token.
TURNS = f"system\nRepresent the user's input.\nuser\nassistant\n{QUERY_INSTRUCTION}"
TURNS_SHARE = 0.02  # of the corpus
INITIAL_DEVIATION = 0.03  # of the weights: at 0.06 and more, vectors take longer to leave the start, all alike
# The real architecture at 5.6 million parameters: DeepStack of three, M-RoPE, grouped queries, norms of q and k.
ARCHITECTURE: dict[str, Any] = {
    "text_config": {**text_config(192, 3, 6, 3, 32, 384, (6, 5, 5)), "initializer_range": INITIAL_DEVIATION},
    "vision_config": {
        **vision_config(128, 3, 4, 384, 192, (0, 1, 2), num_position_embeddings=64),
        "initializer_range": INITIAL_DEVIATION,
    },
    "tie_word_embeddings": True,
}
FINETUNE = {
    "--language": "full",
    "--vision": "full",
    "--max-pixels": 64 * 64,  # of an image: four visual tokens
    "--max-steps": 2400,
    "--batch-size": 768,  # half of the symbols
    "--learning-rate": 2e-3,
    "--embedding-learning-rate": 1e-2,  # a word is seen a few times an epoch: with less, nothing is learned for long
    "--warmup": 0.03,
    "--weight-decay": 0.05,
    "--temperature": 0.05,
    "--matryoshka": "64 128",
    "--save-steps": 100,
}


def train(data: Path, output: Path, *arguments: str) -> int:
    """Write an untrained checkpoint beside `output`, train it on `data`, and return the exit status of finetune.

    Further arguments go to `python -m finetune`, and win over `FINETUNE`.
    """
    untrained = output.with_name(f"{output.name}-untrained")
    corpus = (data / "tokenizer_corpus.txt").read_text(encoding="utf-8").splitlines()
    corpus += [TURNS] * round(TURNS_SHARE * len(corpus))
    write_untrained(untrained, ARCHITECTURE, train_tokenizer(corpus, VOCABULARY), dtype=torch.bfloat16)
    files = ["--checkpoint", untrained, "--train", data / "train.jsonl", "--eval", data / "validation.jsonl"]
    options = [word for option, value in FINETUNE.items() for word in (option, *str(value).split())]
    command = [*files, "--output", output, *options, *arguments]
    return subprocess.run([sys.executable, "-m", "finetune", *map(str, command)]).returncode


def main() -> int:
    """Parse the command line; what it does not know goes to finetune."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=local_path, required=True, help="folder that `python -m demo.build` wrote")
    parser.add_argument("--output", type=local_path, required=True, help="folder for the checkpoint")
    options, further = parser.parse_known_args()
    if not (options.data / "train.jsonl").is_file():
        sys.exit(f"error: {options.data} has no train.jsonl. Make it: python -m demo.build --output {options.data}")
    try:
        return train(options.data, options.output, *further)
    except KeyboardInterrupt:  # finetune says how it goes on
        return 130


if __name__ == "__main__":
    sys.exit(main())
