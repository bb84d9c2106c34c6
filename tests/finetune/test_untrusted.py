"""No code of a checkpoint is run by fine-tuning or evaluation, and none of its links is copied."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.model import CheckpointError, load_model, open_preprocessor, small_files
from tests.untrusted import REFUSED, marker, plant_harmless, plant_module

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"a": "a cat", "b": "eine Katze", "score": 1}, {"a": "a cat", "b": "a house", "score": 0}]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the random checkpoint, beside a user who says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "untrusted"))
    plant_module(copy)
    return copy


@pytest.mark.parametrize("open_it", [open_preprocessor, load_model], ids=["preprocessor", "model"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_not_run(folder: Path, name: str, open_it: object) -> None:
    assert callable(open_it)
    plant, says = REFUSED[name]
    plant(folder)
    with pytest.raises(CheckpointError, match=says):
        open_it(folder)
    assert not marker(folder).exists()


def test_what_nobody_reads_does_no_harm(folder: Path) -> None:
    plant_harmless(folder)
    load_model(folder).encode(["a cat"])
    assert not marker(folder).exists()


@pytest.mark.parametrize("command", ["finetune", "finetune.evaluate", "finetune.mine"])
def test_the_commands_do_not_ask(folder: Path, tmp_path: Path, command: str) -> None:
    plant, says = REFUSED["a config of its own"]
    plant(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    data = {
        "finetune": ["--loss", "cosent", "--train", rows],
        "finetune.evaluate": ["--pairs", f"p={rows}"],
        "finetune.mine": ["--data", rows],
    }[command]
    files = ["--checkpoint", folder, "--output", tmp_path / "output.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", command, *map(str, [*files, *data])],
        cwd=ROOT, input="y\n" * 100, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert says in done.stderr and "[y/N]" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not marker(folder).exists() and not (tmp_path / "output.jsonl").exists()


@pytest.mark.parametrize("name", ["merges.txt", "notes.json", "1_Pooling"])
def test_links_out_of_the_checkpoint_are_not_copied(folder: Path, name: str) -> None:
    private = folder.with_name("private")
    private.mkdir()
    (private / "config.json").write_text("a secret", encoding="utf-8")
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(private if name == "1_Pooling" else private / "config.json")
    with pytest.raises(CheckpointError, match=f"{name}.* is a link to .*private.*out of the checkpoint"):
        small_files(folder)


def test_links_of_the_hub_are_copied(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/1234"
    blobs = tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "config.json").rename(blobs / "5678")
    (snapshot / "config.json").symlink_to("../../blobs/5678")
    assert small_files(snapshot) == [snapshot / "config.json"]
