"""Virtual environments for what is measured beside this project: one per file of pinned requirements, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .report import ROOT

PEERS = Path(__file__).with_name("peers")
MAX_REASON = 300  # characters of an error that a report keeps
NO_TELEMETRY = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class InstallError(Exception):
    """An environment could not be made; the message is the last that pip said."""


def python_of(cache: Path, name: str) -> Path:
    """Return the interpreter of the environment `cache/name`, with `peers/<name>.txt` installed.

    A line `# without PACKAGES: reason` names packages that are removed again.

    Raises
    ------
    InstallError
        pip could not install the requirements.
    """
    folder = (cache / name).resolve()
    python, stamp = folder / "bin/python", folder / "installed"
    wanted = pins(name)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    if torch := [line for line in wanted.splitlines() if line.startswith("torch==")]:
        _pip(python, "install", *torch)  # by itself, so that the build is chosen for it alone, as scripts/install does
    _pip(python, "install", "--requirement", str(PEERS / f"{name}.txt"))
    for line in wanted.splitlines():
        if line.startswith("# without "):
            _pip(python, "uninstall", "--yes", *line.removeprefix("# without ").partition(":")[0].split())
    stamp.write_text(wanted, encoding="utf-8")
    return python


def pins(name: str) -> str:
    """Return the requirements of a file, those of the files that it includes among them."""
    text = (PEERS / f"{name}.txt").read_text(encoding="utf-8")
    included = [line.split()[1].removesuffix(".txt") for line in text.splitlines() if line.startswith("-r ")]
    return "".join(map(pins, included)) + text


def versions(name: str) -> list[str]:
    """Return the pinned packages of a file of requirements."""
    return [line.split()[0] for line in pins(name).splitlines() if line[0] not in "#-"]


def run_environment() -> dict[str, str]:
    """Return the variables for a peer's process: this repository first on its path, no hub and no telemetry."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **NO_TELEMETRY}


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError(" ".join(errors or ran.stderr.splitlines()[-1:])[:MAX_REASON])
