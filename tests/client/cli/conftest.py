"""The command in this process with the server in memory, and as a process of its own with a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from server.launch import TritonServer
from vlembed.cli import vlembed

ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., click.testing.Result]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line in an empty folder, against the server in memory."""
    monkeypatch.setattr("vlembed._client.open_transports", lambda *_, **__: {"memory": memory})
    monkeypatch.chdir(tmp_path)

    def invoke(*args: str, stdin: str | bytes = "") -> click.testing.Result:
        return click.testing.CliRunner().invoke(vlembed, args, input=stdin)

    return invoke


@pytest.fixture
def shell(demo_server: TritonServer, tmp_path: Path) -> Shell:
    """Run `python -m vlembed` with the demonstration's server; files it writes are in `tmp_path`."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client"), "VLEMBED_URL": demo_server.grpc_url}

    def start(*args: str, stdin: str = "", stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vlembed", *args],
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
            cwd=tmp_path,
            env=environment,
        )

    return start
