"""What trains and what is written: `theirs` is what peft or transformers makes of the same files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from export.checkpoint import Checkpoint
from finetune.model import Qwen3VLEncoder, save_checkpoint
from finetune.trainable import Language, Vision, make_trainable, merge_adapter, save_adapter
from tests.random_checkpoint import write_checkpoint

IMAGES = Path(__file__).resolve().parents[2] / "demo/images"
MAX_PIXELS = 4096
TOLERANCE = 1e-5  # float32, merged or not
SIDES = [
    {"text": "ein roter Apfel"},
    {"image": str(IMAGES / "red_apple.png")},
    {"text": "a dog", "image": str(IMAGES / "dog.png")},
]
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def load(folder: Path) -> Qwen3VLEncoder:
    return Qwen3VLEncoder(folder, max_pixels=MAX_PIXELS)


def vectors(encoder: Qwen3VLEncoder, sides: Sequence[Any] = SIDES) -> torch.Tensor:
    with torch.no_grad():
        return torch.nn.functional.normalize(encoder(encoder.preprocess(sides))["sentence_embedding"])


def randomise_adapters(encoder: Qwen3VLEncoder) -> None:
    """Give the adapters' B, which begin as zero, numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in encoder.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 10)


def should_train(name: str, language: Language, vision: Vision) -> bool:
    if ".visual." in name:
        is_merger = "visual.merger." in name or "visual.deepstack_merger_list." in name
        return vision == "full" or (vision == "merger" and is_merger)
    if "lm_head" in name:
        return False
    return language == "full" or (language == "lora" and ".lora_" in name)


@pytest.mark.parametrize("language", get_args(Language))
@pytest.mark.parametrize("vision", get_args(Vision))
def test_gradients_reach_what_should_train_and_nothing_else(
    language: Language, vision: Vision, checkpoint: Checkpoint
) -> None:
    encoder = load(checkpoint.folder)
    make_trainable(encoder, language, vision, rank=4, alpha=4)
    if language == "lora":
        randomise_adapters(encoder)  # with B = 0, A would get no gradients
    weights = dict(encoder.whole.named_parameters())
    expected = {name for name in weights if should_train(name, language, vision)}
    assert {name for name, weight in weights.items() if weight.requires_grad} == expected
    if not expected:
        return
    encoder(encoder.preprocess(SIDES))["sentence_embedding"].square().sum().backward()
    reached = {name for name, weight in weights.items() if weight.grad is not None and weight.grad.abs().max() > 0}
    assert reached == expected


def test_what_trains_is_not_empty_and_not_everything(checkpoint: Checkpoint) -> None:
    names = [name for name, _ in load(checkpoint.folder).whole.named_parameters()]
    trained = {
        (language, vision): sum(should_train(name, language, vision) for name in names)
        for language in ("full", "frozen")
        for vision in get_args(Vision)
    }
    assert trained["frozen", "frozen"] == 0
    assert 0 < trained["frozen", "merger"] < trained["frozen", "full"] < trained["full", "full"] == len(names)


@pytest.mark.parametrize("size", ["tiny", "deep"])
def test_lora_adapts_seven_projections_of_every_language_layer(
    size: str, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    checkpoint = checkpoint_of(size)
    encoder = load(checkpoint.folder)
    make_trainable(encoder, rank=4, alpha=8)
    ours = {name for name, module in encoder.whole.named_modules() if hasattr(module, "lora_A")}
    num_layers = checkpoint.config.text_config.num_hidden_layers
    found = [re.search(r"language_model\.layers\.(\d+)\.\w+\.(\w+)$", name) for name in ours]
    assert {match.groups() for match in found if match} == {
        (str(layer), name) for layer in range(num_layers) for name in PROJECTIONS
    }
    assert len(ours) == 7 * num_layers


def test_lora_begins_at_the_checkpoint(checkpoint: Checkpoint) -> None:
    encoder = load(checkpoint.folder)
    theirs = vectors(encoder)
    make_trainable(encoder, rank=4, alpha=4)
    torch.testing.assert_close(vectors(encoder), theirs, atol=TOLERANCE, rtol=0)


def test_rank_and_alpha(checkpoint: Checkpoint) -> None:
    encoder = load(checkpoint.folder)
    make_trainable(encoder, rank=3, alpha=12)
    projection = encoder.model.language_model.layers[0].self_attn.q_proj
    assert projection.lora_A["default"].weight.shape[0] == 3
    assert projection.scaling["default"] == 12 / 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft, reading the adapter
@pytest.mark.parametrize("size", ["tiny", "deep"])
def test_the_merged_checkpoint_is_adapter_and_base(
    size: str, checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(size)
    encoder = load(checkpoint.folder)
    before = vectors(encoder)
    make_trainable(encoder, rank=4, alpha=8)
    randomise_adapters(encoder)
    theirs = vectors(encoder)
    assert (theirs - before).abs().max() > 100 * TOLERANCE
    save_adapter(encoder, tmp_path / "adapter")
    merge_adapter(encoder)
    save_checkpoint(encoder, tmp_path / "merged")
    torch.testing.assert_close(vectors(load(tmp_path / "merged")), theirs, atol=TOLERANCE, rtol=0)

    base = load(checkpoint.folder)
    base.model = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    torch.testing.assert_close(vectors(base), theirs, atol=TOLERANCE, rtol=0)


def test_an_adapter_is_small_and_names_no_path_of_its_base(checkpoint: Checkpoint, tmp_path: Path) -> None:
    encoder = load(checkpoint.folder)
    make_trainable(encoder, rank=2, alpha=2)
    save_adapter(encoder, tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert len(names) == 2 * 7 * checkpoint.config.text_config.num_hidden_layers
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_merging_without_adapters_does_nothing(checkpoint: Checkpoint) -> None:
    encoder = load(checkpoint.folder)
    make_trainable(encoder, "full", "full")
    model = encoder.model
    merge_adapter(encoder)
    assert encoder.model is model is encoder.whole.model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", ["tiny", "deep", "wide"])
@pytest.mark.parametrize("language", ["lora", "full"])
def test_a_saved_checkpoint_is_a_plain_one(size: str, dtype: torch.dtype, language: Language, tmp_path: Path) -> None:
    original = write_checkpoint(tmp_path / "original", size, dtype=dtype)
    encoder = load(original)
    make_trainable(encoder, language, rank=2, alpha=2)
    merge_adapter(encoder)
    saved = tmp_path / "saved"
    save_checkpoint(encoder, saved)

    ours, theirs = load_file(saved / "model.safetensors"), load_file(original / "model.safetensors")
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)  # untrained: same names, dtypes and numbers
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.dtype == dtype
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"

    files = {str(path.relative_to(original)) for path in original.rglob("*") if path.is_file()}
    copied = files - {"model.safetensors"}
    assert copied >= {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "tokenizer_config.json"}
    assert copied >= {"modules.json", "1_Pooling/config.json"}  # sentence-transformers'
    for name in copied:
        assert (saved / name).read_bytes() == (original / name).read_bytes(), name
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]}]
    prompts = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
        for folder in (original, saved)
    ]
    assert prompts[0] == prompts[1] and "a cat" in prompts[0]
    assert len({path.stat().st_mode for path in saved.iterdir() if path.is_file()}) == 1  # who reads one reads all
