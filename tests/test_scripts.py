"""The scripts: verbs that say what they are, run from anywhere, and refuse in a sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.suffix != ".sh")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with this very environment as its virtual environment."""
    everything = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_is(name: str) -> None:
    path = ROOT / "scripts" / name
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    subprocess.run(["bash", "-n", path], check=True)
    documentation = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    assert f"./scripts/{name}" in documentation


def test_ci_calls_the_test_command() -> None:
    assert "./scripts/test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "export", "--checkpoint", "no/such", "--output", "x"], "'no/such' is neither a folder nor a model"),
        (["-m", "server", "--repository", "nowhere", "--health-port", "0"], "nowhere"),
    ],
)
def test_commands_refuse_in_a_sentence(arguments: list[str], says: str, tmp_path: Path) -> None:
    ran = run(sys.executable, *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: ")
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def test_install_refuses_a_python_that_does_not_do(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = "--version" ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    ran = run(ROOT / "scripts/install", cwd=tmp_path, PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: Python 3.9.2 does not do")
    missing = run(ROOT / "scripts/install", cwd=tmp_path, PYTHON="python-of-nobody", VENV=str(tmp_path / "venv"))
    assert "python-of-nobody is not installed" in missing.stderr


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["install", "--dve"], "unknown argument --dve"),
        (["quickstart", "--chekpoint"], "unknown argument --chekpoint"),
        (["quickstart", "--checkpoint"], "--checkpoint needs a folder or a hub id"),
        (["benchmark"], "unknown benchmark ''"),
        (["benchmark", "report"], "unknown benchmark 'report'"),
    ],
)
def test_scripts_refuse_before_they_install(command: list[str], says: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    ran = run(ROOT / "scripts" / command[0], *command[1:], cwd=tmp_path, VENV=str(venv))
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: {says}")
    assert not venv.exists()


def test_install_clears_nothing_but_a_virtual_environment(tmp_path: Path) -> None:
    kept = tmp_path / "thesis.txt"
    kept.touch()
    ran = run(ROOT / "scripts/install", cwd=tmp_path, PYTHON=sys.executable, VENV=str(tmp_path))
    assert ran.returncode == 2
    assert "is no virtual environment" in ran.stderr
    assert kept.exists()


@pytest.fixture
def installed() -> str:
    """Return the running environment, if scripts/install made it: the scripts then leave it as it is."""
    if not list(Path(sys.prefix).glob("installed-*")):
        pytest.skip("needs the environment of ./scripts/install")
    return sys.prefix


@pytest.mark.triton
def test_quickstart_embeds_images_and_texts(installed: str, tmp_path: Path) -> None:
    ran = run(ROOT / "scripts/quickstart", cwd=tmp_path, VENV=installed)
    assert ran.returncode == 0, ran.stderr
    assert "18 of 18 find their picture first" in ran.stdout
    assert "Photographs need the real one" in ran.stdout


@pytest.mark.triton
def test_quickstart_outlives_its_server(installed: str, tmp_path: Path) -> None:
    environment = {**os.environ, "VENV": installed}
    command = ROOT / "scripts/quickstart"
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as quickstart:
        assert quickstart.stdout
        url = next(line.split()[-1] for line in quickstart.stdout if line.startswith("ready on "))
        quickstart.terminate()
        quickstart.stdout.read()
    assert quickstart.returncode == 128 + signal.SIGTERM
    host, _, port = url.removeprefix("grpc://").partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port))).close()
