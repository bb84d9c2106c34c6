"""What export accepts, what it refuses and why, and what a fingerprint stands for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.__main__ import export
from export.checkpoint import Checkpoint, ExportError, open_checkpoint
from tests.random_checkpoint import write_checkpoint


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """Return a copy of the random checkpoint to spoil."""
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "spoilt"))


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_in(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


SPOIL = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), "files are broken"),
    "another model": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(model_type="qwen3")), "model_type is 'qwen3'",
    ),
    "another patch size": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_config"].update(patch_size=14)), "patch_size is 14",
    ),
    "another normalisation": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.update(image_mean=[0.4, 0.5, 0.5])),
        "image_mean is \\[0.4, 0.5, 0.5\\]",
    ),
    "image after text": (
        lambda f: replace_in(f / "chat_template.jinja", "{%- if content.type == 'image' %}", "{%- if false %}"),
        "an image as ''",
    ),
    "a template that strips": (
        lambda f: replace_in(f / "chat_template.jinja", "{{- content.text }}", "{{- content.text | trim }}"),
        "once and unchanged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOIL)
def test_refused_before_the_weights_are_read(folder: Path, tmp_path: Path, name: str) -> None:
    spoil, says = SPOIL[name]
    spoil(folder)
    with pytest.raises(ExportError, match=says):
        export(str(folder), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_neither_folder_nor_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="'no/such-model' is neither a folder nor a model"):
        open_checkpoint("no/such-model")


def test_missing_tensors_are_never_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(str(folder)).load_model()


def test_bfloat16_weights_are_exported_in_float32(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "random-bf16", dtype=torch.bfloat16)
    model = open_checkpoint(str(tmp_path / "random-bf16")).load_model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_fingerprint_follows_everything_a_vector_depends_on(folder: Path) -> None:
    options = {"precision": "fp32"}
    before = open_checkpoint(str(folder)).fingerprint(options)
    assert open_checkpoint(str(folder)).fingerprint(options) == before
    assert open_checkpoint(str(folder)).fingerprint({"precision": "int8"}) != before
    stored = dataclasses.replace(open_checkpoint(str(folder)), exif_orientation=False)
    assert (stored.preprocessing()["exif_orientation"], stored.fingerprint(options) == before) == (False, False)
    seen = {before}
    for name, change in {
        "weights": lambda: write_checkpoint(folder, "tiny", seed=1),
        "template": lambda: replace_in(folder / "chat_template.jinja", "assistant", "helper"),
        "config": lambda: edit_json(folder / "config.json", lambda c: c["text_config"].update(rms_norm_eps=1e-5)),
        "tokenizer": lambda: replace_in(folder / "tokenizer.json", '"NFC"', '"NFD"'),
    }.items():
        change()
        after = open_checkpoint(str(folder)).fingerprint(options)
        assert after not in seen, name
        seen.add(after)
