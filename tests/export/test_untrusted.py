"""No code of a checkpoint is run by export, even if somebody answers "y" to every question."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.checkpoint import Checkpoint, ExportError, open_checkpoint
from tests.untrusted import REFUSED, marker, plant_harmless, plant_module

ROOT = Path(__file__).resolve().parents[2]
MAX_MESSAGE = 1000


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the random checkpoint, beside a user who says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    copy = Path(shutil.copytree(checkpoint.folder, tmp_path / "untrusted"))
    plant_module(copy)
    return copy


def open_all(folder: Path) -> None:
    """Open everything of a checkpoint that export opens."""
    checkpoint = open_checkpoint(str(folder))
    checkpoint.preprocessing()
    checkpoint.load_model()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_not_run(folder: Path, name: str) -> None:
    plant, says = REFUSED[name]
    plant(folder)
    with pytest.raises(ExportError, match=says) as caught:
        open_all(folder)
    assert not marker(folder).exists()
    assert len(str(caught.value)) < MAX_MESSAGE + len(str(folder))


def test_what_nobody_reads_does_no_harm(folder: Path) -> None:
    plant_harmless(folder)
    open_all(folder)
    assert not marker(folder).exists()


def test_the_command_does_not_ask(folder: Path, tmp_path: Path) -> None:
    plant, says = REFUSED["a config of its own"]
    plant(folder)
    command = [sys.executable, "-m", "export", "--checkpoint", str(folder), "--output", str(tmp_path / "repository")]
    done = subprocess.run(command, cwd=ROOT, input="y\n" * 100, capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr and "[y/N]" not in done.stdout + done.stderr
    assert not marker(folder).exists() and not (tmp_path / "repository").exists()


def loads() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call of `from_pretrained` in the folders that open checkpoints."""
    for path in sorted([*ROOT.glob("export/*.py"), *ROOT.glob("finetune/*.py"), *ROOT.glob("demo/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_load_says_that_nothing_is_trusted() -> None:
    calls = list(loads())
    assert len(calls) >= 6
    for place, call in calls:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("trust_remote_code") == "False", place
        if not ast.unparse(call.func).startswith(("AutoConfig", "AutoTokenizer")):
            assert options.get("use_safetensors") == "True", place
