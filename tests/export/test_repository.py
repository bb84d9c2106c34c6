"""What export writes: the source tree's configs with the sizes filled in, placed whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.__main__ import export, write_info, write_small_files
from export.checkpoint import Checkpoint, ExportError
from export.repository import TEMPLATE
from export.variants import FP32, VARIANTS
from tests.conftest import ARCHITECTURES

LEFT_OUT = {"checkpoint_files.py", "settings.py"}  # of those who load a checkpoint
FILES = {
    "embed/1/about.txt", "embed/config.pbtxt", "embed_text/1/about.txt", "embed_text/config.pbtxt",
    "info/1/info.json", "info/1/model.py", "info/config.pbtxt",
    "language_model/1/model.onnx", "language_model/1/model.onnx.data", "language_model/config.pbtxt",
    "pooling/1/model.py", "pooling/config.pbtxt",
    *(f"preprocess/1/{path.name}" for path in TEMPLATE.glob("preprocess/1/*.py") if path.name not in LEFT_OUT),
    "preprocess/1/preprocessing.json", "preprocess/1/tokenizer.json", "preprocess/config.pbtxt",
    "vision_encoder/1/model.onnx", "vision_encoder/1/model.onnx.data", "vision_encoder/config.pbtxt",
}  # fmt: skip


def test_files(repository: Path) -> None:
    leaves = {path for path in repository.rglob("*") if path.is_file() or not any(path.iterdir())}
    leaves = {path for path in leaves if path.parent.name != "__pycache__"}
    assert {str(path.relative_to(repository)) for path in leaves} == FILES


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_sizes_are_filled_in(
    size: str, checkpoint_of: Callable[[str], Checkpoint], repository_of: Callable[[str], Path]
) -> None:
    checkpoint, repository = checkpoint_of(size), repository_of(size)
    for path in TEMPLATE.glob("*/config.pbtxt"):
        theirs = (repository / path.relative_to(TEMPLATE)).read_text()
        ours = path.read_text()
        for before, after in ((8192, checkpoint.image_embeds_size), (2048, checkpoint.hidden_size)):
            ours = re.sub(rf"(dims: \[[^\]]*)\b{before}\b", rf"\g<1>{after}", ours)
        assert ours == theirs


def test_info(repository: Path, checkpoint: Checkpoint) -> None:
    info = json.loads((repository / "info/1/info.json").read_text())
    assert info["checkpoint"] == "random-tiny"
    assert (info["dimensions"], info["min_dimensions"]) == (128, 64)
    fingerprint = checkpoint.fingerprint({"precision": "fp32"})
    assert info["variants"] == {"cpu": {"precision": "fp32", "fingerprint": fingerprint}}


def test_whether_pictures_are_turned_is_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for folder in ("preprocess/1", "info/1"):
        (tmp_path / folder).mkdir(parents=True)
    as_stored = dataclasses.replace(checkpoint, exif_orientation=False)
    write_small_files(tmp_path, as_stored, [VARIANTS["cpu"]])
    write_info(tmp_path, as_stored, [VARIANTS["cpu"]])
    assert json.loads((tmp_path / "preprocess/1/preprocessing.json").read_text())["exif_orientation"] is False
    variant = json.loads((tmp_path / "info/1/info.json").read_text())["variants"]["cpu"]
    assert variant["fingerprint"] == as_stored.fingerprint({"precision": "fp32"})
    assert variant["fingerprint"] != checkpoint.fingerprint({"precision": "fp32"})


def test_an_existing_repository_is_kept_unless_told(checkpoint: Checkpoint, repository: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(repository, tmp_path / "repository"))
    (old / "precious").touch()
    with pytest.raises(ExportError, match="--overwrite"):
        export(str(checkpoint.folder), old)
    assert (old / "precious").exists()
    export(str(checkpoint.folder), old, overwrite=True)
    assert not (old / "precious").exists()


@pytest.mark.parametrize("url", ["s3://bucket/repository", "gs://b", "hdfs:///r"])
def test_a_url_is_no_output(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="is a URL"):
        export(str(checkpoint.folder), Path(url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_but_a_repository_is_overwritten(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    thesis = tmp_path / "home" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.touch()
    with pytest.raises(ExportError, match="no model repository"):
        export(str(checkpoint.folder), thesis if kind == "file" else thesis.parent, overwrite=True)
    assert thesis.exists()


def test_a_graph_that_disagrees_is_not_placed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(VARIANTS["cpu"], precision=replace(FP32, min_cosine=1.1))
    monkeypatch.setattr("export.variants.VARIANTS", {"cpu": strict})
    with pytest.raises(ExportError, match="cosine"):
        export(str(checkpoint.folder), tmp_path / "repository")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tower", ["vision_encoder", "language_model"])
def test_a_tower_that_trusts_a_batch_with_empty_tensors_is_not_placed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: str
) -> None:
    monkeypatch.setattr(f"export.{tower}.none_empty", lambda *offsets: torch.tensor(True))
    with pytest.raises(ExportError, match=f"{tower}: a batch in which a request has no"):
        export(str(checkpoint.folder), tmp_path / "repository")
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "repository")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=TEMPLATE.parent, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ") and "config.json is missing" in ran.stderr
    assert "Traceback" not in ran.stderr
