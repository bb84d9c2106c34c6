"""Write a randomly initialised Qwen3-VL-Embedding checkpoint with the files and layout of the real one.

It knows the architectures the tests are run on, up to the full size of the 2B. The tokenizer is a byte-level BPE
trained here, with the real special tokens. The vectors mean nothing; that they agree with transformers means all.

    python -m tests.random_checkpoint --size tiny --output DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
# Qwen's split: contractions, words with at most one leading mark, single digits, marks, line breaks, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "system user assistant Represent the user's input. Retrieve images or text relevant to the user's query.",
    "A photograph of a golden retriever puppy. The Eiffel Tower at sunset. Two cats sleep on a red sofa.",
    "Eine Katze schläft auf dem Sofa. Un chat dort sur le canapé. Un gato duerme en el sofá.",
    "一只猫在沙发上睡觉。埃菲尔铁塔的日落。你好，世界！向量检索与图像检索。",
    "قطة تنام على الأريكة. مرحبا بالعالم. برج إيفل عند غروب الشمس.",
    "बिल्ली सोफे पर सो रही है। кошка спит на диване. ネコがソファで寝ています。 고양이가 소파에서 잔다.",
    "emoji 🐱🐶🚀🍎🚲 and numbers 0123456789 and code def f(x): return x ** 2",
]
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nRepresent the user\\'s input.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def _text(hidden_size: int, layers: int, heads: int, kv_heads: int, head_dim: int, intermediate_size: int,
          mrope_section: tuple[int, int, int], vocab_size: int = 0) -> dict[str, Any]:  # fmt: skip
    return {
        "hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": intermediate_size,
        "vocab_size": vocab_size, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": list(mrope_section),
                            "mrope_interleaved": True},
    }  # fmt: skip


def _vision(hidden_size: int, depth: int, heads: int, intermediate_size: int, out_hidden_size: int,
            deepstack: tuple[int, ...], num_position_embeddings: int = 2304) -> dict[str, Any]:  # fmt: skip
    return {
        "hidden_size": hidden_size, "depth": depth, "num_heads": heads, "intermediate_size": intermediate_size,
        "out_hidden_size": out_hidden_size, "deepstack_visual_indexes": list(deepstack),
        "num_position_embeddings": num_position_embeddings, "hidden_act": "gelu_pytorch_tanh",
        "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3,
    }  # fmt: skip


ARCHITECTURES: dict[str, dict[str, Any]] = {
    # the proportions of the 2B: DeepStack of three, grouped queries, tied embeddings
    "tiny": {
        "text_config": _text(128, 4, 4, 2, 32, 256, (8, 4, 4)),
        "vision_config": _vision(64, 4, 4, 128, 128, (0, 1, 2)),
        "tie_word_embeddings": True,
    },
    # as the 8B differs from it: untied, more layers, one DeepStack feature late in the tower, no grouped queries
    "deep": {
        "text_config": _text(64, 6, 2, 2, 32, 160, (6, 5, 5)),
        "vision_config": _vision(48, 6, 3, 96, 64, (4,), num_position_embeddings=64),
        "tie_word_embeddings": False,
    },
    # head_dim x heads unlike the hidden size, five queries per key, two DeepStack features
    "wide": {
        "text_config": _text(96, 3, 5, 1, 40, 128, (8, 6, 6)),
        "vision_config": _vision(72, 3, 2, 100, 96, (1, 2), num_position_embeddings=400),
        "tie_word_embeddings": True,
    },
    "2b": {
        "text_config": _text(2048, 28, 16, 8, 128, 6144, (24, 20, 20), vocab_size=151936),
        "vision_config": _vision(1024, 24, 16, 4096, 2048, (5, 11, 17)),
        "tie_word_embeddings": True,
    },
}


def train_tokenizer() -> Tokenizer:
    """Train a byte-level BPE with Qwen's normaliser, split, special tokens and `<|endoftext|>` post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
            ),
        ]
    )
    return tokenizer


def write_checkpoint(output: Path, size: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random checkpoint of `ARCHITECTURES[size]` into the folder `output` and return it."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(output / "tokenizer.json"))
    token_id = tokenizer.token_to_id
    architecture = json.loads(json.dumps(ARCHITECTURES[size]))
    architecture["text_config"]["vocab_size"] = architecture["text_config"]["vocab_size"] or tokenizer.get_vocab_size()
    config = Qwen3VLConfig(
        **architecture,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    if size != "2b":
        for parameter in model.parameters():  # away from the start's zeros and ones, so that every weight counts
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(output)
    (output / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (output / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "size": {"shortest_edge": 4096, "longest_edge": 1310720},
                "patch_size": 16,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            },
            indent=2,
        )
    )
    (output / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "pad_token": "<|endoftext|>",
                "eos_token": "<|im_end|>",
                "model_max_length": 262144,
            },
            indent=2,
        )
    )
    return output


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
