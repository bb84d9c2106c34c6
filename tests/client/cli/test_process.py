"""The command as a process: without click, on a terminal, interrupted."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
