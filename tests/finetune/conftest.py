"""A real server, which runs in the serving environment: its own interpreter, with its own packages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.random_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("finetune") / "random-tiny", "tiny")


@pytest.fixture(scope="session")
def serving_python() -> Path:
    """Return the interpreter of the serving environment."""
    python = Path(os.environ.get("SERVING_PYTHON", ROOT / ".venv/bin/python"))
    if not python.is_file():
        pytest.fail(
            f"the interpreter of the serving environment, {str(python)!r}, is missing. "
            "Run ./scripts/install, or set SERVING_PYTHON."
        )
    return python


@pytest.fixture(scope="session")
def served(serving_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Export and serve a checkpoint, once, and return the URL of gRPC."""
    servers: list[subprocess.Popen[str]] = []
    urls: dict[Path, str] = {}

    def serve(checkpoint: Path) -> str:
        if checkpoint not in urls:
            folder = tmp_path_factory.mktemp("served")
            export = ["-m", "export", "--checkpoint", str(checkpoint), "--output", str(folder / "repository")]
            exported = subprocess.run([serving_python, *export], cwd=ROOT, capture_output=True, text=True)
            assert exported.returncode == 0, exported.stderr
            command = ["-m", "server", "--repository", str(folder / "repository")]
            ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--health-port", "0"]
            with (folder / "server.log").open("w", encoding="utf-8") as log:
                server = subprocess.Popen(
                    [serving_python, *command, *ports], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
                )
            servers.append(server)
            assert server.stdout
            line = server.stdout.readline()
            assert line.startswith("ready "), (folder / "server.log").read_text(encoding="utf-8")[-2000:]
            urls[checkpoint] = line.split()[2]
        return urls[checkpoint]

    yield serve
    for server in servers:
        server.terminate()
    for server in servers:
        server.communicate(timeout=STOP_TIMEOUT_S)


@pytest.fixture(scope="session")
def url(served: Callable[[Path], str], tiny_checkpoint: Path) -> str:
    """Return the URL of a server of `tiny_checkpoint`."""
    return served(tiny_checkpoint)
