"""What trains: LoRA or all of the language tower, nothing, the mergers or all of the vision tower.

Knows the names of Qwen3-VL's parts; knows nothing of data or losses.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

from peft import LoraConfig, PeftModel, get_peft_model

from finetune.model import Qwen3VLEncoder

Language = Literal["lora", "full", "frozen"]
Vision = Literal["frozen", "merger", "full"]

LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
MERGERS = ("merger.", "deepstack_merger_list.")  # from patches to visual tokens


def make_trainable(
    encoder: Qwen3VLEncoder, language: Language = "lora", vision: Vision = "frozen", *, rank: int = 32, alpha: int = 32
) -> None:
    """Let gradients reach what should train, and nothing else.

    Parameters
    ----------
    language
        "lora" adds adapters to q, k, v, o, gate, up and down of every layer; "full" trains every weight of the tower,
        token embeddings included.
    vision
        "merger" trains what turns patches into visual tokens, DeepStack's included.
    rank, alpha
        Of LoRA: the update of a weight is alpha / rank times the product of the two adapters.
    """
    encoder.whole.requires_grad_(False)
    visual, tower = encoder.model.visual, encoder.model.language_model
    if language == "lora":
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS)
        with warnings.catch_warnings():  # peft asks for a property by its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            encoder.model = get_peft_model(encoder.model, config)
    elif language == "full":
        tower.requires_grad_(True)
    for name, parameter in visual.named_parameters():
        parameter.requires_grad = vision == "full" or (vision == "merger" and name.startswith(MERGERS))


def save_adapter(encoder: Qwen3VLEncoder, output: Path) -> None:
    """Write the LoRA adapters alone, as peft does."""
    encoder.model.save_pretrained(output)


def merge_adapter(encoder: Qwen3VLEncoder) -> None:
    """Add the LoRA adapters to the weights that they adapt; without adapters, do nothing."""
    if isinstance(encoder.model, PeftModel):
        encoder.model = encoder.model.merge_and_unload()
        encoder.whole.model = encoder.model
