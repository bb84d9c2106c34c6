"""The command as a process: without click, on a terminal, interrupted."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.cli.conftest import ROOT


def command(*args: str, **env: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")} | env
    return {"args": [sys.executable, *args], "env": environment, "text": True}


def test_a_missing_click_is_told_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('No module named click', name='click')")
    path = f"{tmp_path}{os.pathsep}{ROOT / 'client'}"
    ran = subprocess.run(**command("-m", "vlembed", "info", PYTHONPATH=path), capture_output=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: click is not installed. Install it with: pip install 'vlembed[cli]'\n"


def on_a_terminal(*args: str) -> tuple[int, str]:
    """Run a command whose standard output is a terminal, and return its exit status and what is shown."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", closefd=True) as shown:
        status = subprocess.run(**command("-m", "vlembed", *args), stdout=theirs, stderr=subprocess.STDOUT).returncode
        os.close(theirs)
        return status, os.read(shown.fileno(), 65_536).decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_table_and_no_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(2))
    assert on_a_terminal("similarity", f"{tmp_path}/x.npy", "--metric", "dot")[1].startswith("dot ")
    status, told = on_a_terminal("similarity", f"{tmp_path}/x.npy", "--format", "npy")
    assert status == 2
    assert told.startswith("error: npy is not for a terminal. Add --output FILE")


def test_control_c() -> None:
    """Interrupt a request that a server takes and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = subprocess.Popen(
            **command("-m", "vlembed", "info", "--url", url),
            stderr=subprocess.PIPE,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # else a job in the background ignores it
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            time.sleep(0.1)
            started.send_signal(signal.SIGINT)
            _, errors = started.communicate(timeout=30)
    assert started.returncode == 130
    assert not errors.strip()


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Return a file of vectors whose similarities in JSON are over 1 MB."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((300, 4)))
    return tmp_path / "x.npy"


UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


@UNBUFFERED
def test_a_large_result_is_whole(vectors: Path, unbuffered: str) -> None:
    ran = subprocess.run(
        **command("-m", "vlembed", "similarity", str(vectors), PYTHONUNBUFFERED=unbuffered), capture_output=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout) > 1_000_000
    assert np.shape(json.loads(ran.stdout)["similarity"]) == (300, 300)


@UNBUFFERED
@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("similarity {} | head -c 1", 141, ""),
        ("similarity {} >/dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("similarity {} >&-", 1, "standard output cannot be written"),
        ("embed <&-", 2, "standard input has no items"),
        ("similarity {} 2>&- | head -c 1", 141, ""),
        ("--help | true", 141, ""),
        ("similarity --help | true", 141, ""),
        ("--version | true", 141, ""),
        ("--help >/dev/full", 1, "No space left on device"),
        ("--help >&-", 1, ""),
    ],
)
def test_output_that_cannot_be_written(vectors: Path, unbuffered: str, line: str, status: int, told: str) -> None:
    line = line.format(vectors).replace("| true", "| (exec <&-; sleep 1)")  # it is gone before anything is written
    script = f"set -o pipefail; '{sys.executable}' -m vlembed {line}"
    ran = subprocess.run(
        ["bash", "-c", script], env=command(PYTHONUNBUFFERED=unbuffered)["env"], capture_output=True, text=True
    )
    assert ran.returncode == status
    assert told in ran.stderr
    assert len(ran.stderr.splitlines()) == (status != 141)


@UNBUFFERED
def test_a_file_at_its_limit_is_no_success(vectors: Path, tmp_path: Path, unbuffered: str) -> None:
    for option, name in ((">", "standard output"), ("-o", "x.json")):
        script = f"trap '' XFSZ; ulimit -f 100; '{sys.executable}' -m vlembed similarity {vectors} {option} x.json"
        ran = subprocess.run(
            ["bash", "-c", script], env=command(PYTHONUNBUFFERED=unbuffered)["env"], cwd=tmp_path, capture_output=True
        )
        assert ran.returncode == 1
        assert re.match(f"error: '?{name}'? cannot be written", ran.stderr.decode())


def test_the_encoding_of_the_terminal_spoils_no_result(tmp_path: Path) -> None:
    np.save(tmp_path / "猫.npy", np.eye(2))
    ran = subprocess.run(
        **command("-m", "vlembed", "similarity", f"{tmp_path}/猫.npy", PYTHONIOENCODING="latin-1") | {"text": False},
        capture_output=True,
    )
    assert json.loads(ran.stdout)["rows"] == [f"{tmp_path}/猫.npy[0]", f"{tmp_path}/猫.npy[1]"]
