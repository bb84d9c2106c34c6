"""Write an untrained Qwen3-VL-Embedding checkpoint with the files and layout of the real one.

Any sizes, a byte-level BPE tokenizer of its own with the real special tokens and post-processor, the chat template.
Knows nothing of training; the demo starts from it, and the tests' random checkpoints are made of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
# Qwen's split: contractions, words with at most one leading mark, single digits, marks, line breaks, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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


PREPROCESSOR_CONFIG = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 4096, "longest_edge": 1310720},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "pad_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "model_max_length": 262144,
}
LAST_HIDDEN_STATE = {"method": "forward", "method_output_name": "last_hidden_state"}
# How sentence-transformers makes a vector of it; of the hidden size in 1_Pooling below.
SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize",
         "type": "sentence_transformers.base.modules.normalize.Normalize"},
    ],
    "config_sentence_transformers": {
        "prompts": {"default": "Represent the user's input."},
        "default_prompt_name": "default",
        "similarity_fn_name": "cosine",
    },
    "sentence_bert_config": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": LAST_HIDDEN_STATE,
            "image": LAST_HIDDEN_STATE,
            "message": {**LAST_HIDDEN_STATE, "format": "structured"},
        },
        "module_output_name": "token_embeddings",
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
    },
}  # fmt: skip


def text_config(hidden_size: int, layers: int, heads: int, kv_heads: int, head_dim: int, intermediate_size: int,
          mrope_section: tuple[int, int, int], vocab_size: int = 0) -> dict[str, Any]:  # fmt: skip
    """Return the settings of a language tower."""
    return {
        "hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": intermediate_size,
        "vocab_size": vocab_size, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": list(mrope_section),
                            "mrope_interleaved": True},
    }  # fmt: skip


def vision_config(hidden_size: int, depth: int, heads: int, intermediate_size: int, out_hidden_size: int,
            deepstack: tuple[int, ...], num_position_embeddings: int = 2304) -> dict[str, Any]:  # fmt: skip
    """Return the settings of a vision tower."""
    return {
        "hidden_size": hidden_size, "depth": depth, "num_heads": heads, "intermediate_size": intermediate_size,
        "out_hidden_size": out_hidden_size, "deepstack_visual_indexes": list(deepstack),
        "num_position_embeddings": num_position_embeddings, "hidden_act": "gelu_pytorch_tanh",
        "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3,
    }  # fmt: skip


ARCHITECTURE_2B: dict[str, Any] = {  # of Qwen3-VL-Embedding-2B
    "text_config": text_config(2048, 28, 16, 8, 128, 6144, (24, 20, 20), vocab_size=151936),
    "vision_config": vision_config(1024, 24, 16, 4096, 2048, (5, 11, 17)),
    "tie_word_embeddings": True,
}


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> Tokenizer:
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
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
            ),
        ]
    )
    return tokenizer


def write_untrained(
    output: Path,
    architecture: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    noise: float = 0.0,
) -> Path:
    """Write a checkpoint with fresh weights into the folder `output` and return it.

    Parameters
    ----------
    architecture
        `text_config`, `vision_config` and `tie_word_embeddings`; a `vocab_size` of 0 becomes the tokenizer's.
    noise
        Standard deviation of what is added to every weight, to get away from the start's zeros and ones.
    """
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(output / "tokenizer.json"))
    token_id: Any = tokenizer.token_to_id  # None of no token that is asked for here
    architecture = copy.deepcopy(architecture)
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
    if noise:
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * noise)
    model.save_pretrained(output)
    (output / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_settings(output, architecture["text_config"]["hidden_size"])
    return output


def write_settings(output: Path, hidden_size: int) -> None:
    """Write the small files of processors, tokenizer and sentence-transformers."""
    pooling = {"embedding_dimension": hidden_size, "pooling_mode": "lasttoken", "include_prompt": True}
    files = {
        "preprocessor_config": PREPROCESSOR_CONFIG,
        "tokenizer_config": TOKENIZER_CONFIG,
        "1_Pooling/config": pooling,
        **SENTENCE_TRANSFORMERS,
    }
    for name, settings in files.items():
        path = output / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(settings, indent=2))
