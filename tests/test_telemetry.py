"""ONNX Runtime's telemetry, which keeps files in the user's folders, is off wherever the project starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.launch import TritonServer

PROGRAM = "import {module}, onnxruntime; onnxruntime.InferenceSession({graph!r})"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that programs started now take for the user's, and for that of temporary files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def telemetry(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name in ("Microsoft", ".ses")]


@pytest.mark.parametrize("module", ["export.validate", "benchmark.serving"])
def test_programs(repository: Path, home: Path, module: str) -> None:
    program = PROGRAM.format(module=module, graph=str(repository / "vision_encoder/1/model.onnx"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert not telemetry(home)


@pytest.mark.triton
def test_the_server(repository: Path, home: Path) -> None:
    with TritonServer(repository):
        pass
    assert not telemetry(home)
