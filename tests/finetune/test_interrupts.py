"""Ctrl-C and SIGTERM end a command without a traceback, and say how it goes on. Real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from finetune.interrupts import INTERRUPTED
from finetune.training import COMPLETE, describe_interrupted

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120
STEPS = 100_000  # never reached


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    values = [{"anchor": f"a cat {i}", "positive": f"eine Katze {i}"} for i in range(16)]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def command(checkpoint: Path, rows: Path, output: Path, *more: object) -> list[str]:
    files = ["--checkpoint", checkpoint, "--train", rows, "--output", output]
    options = ["--max-steps", STEPS, "--batch-size", 4, "--rank", 4, "--save-steps", 3, *more]
    return [sys.executable, "-m", "finetune", *map(str, [*files, *options])]


def interrupt(
    arguments: list[str], ready: Callable[[int], bool], signum: signal.Signals, times: int = 1
) -> tuple[int, str]:
    """Start a command, send a signal when its process id is `ready`, and return its exit status and what it said."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # which a shell may ignore
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not ready(process.pid):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(signum)
        time.sleep(0.1)
    _, said = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, said


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_with_a_snapshot_names_it_and_goes_on(
    signum: signal.Signals, tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    complete = output / "training/checkpoint-3" / COMPLETE
    status, said = interrupt(command(tiny_checkpoint, rows, output), lambda _: complete.exists(), signum)
    assert status == INTERRUPTED and "Traceback" not in said
    assert f"interrupted: the last snapshot is {output}/training/checkpoint-" in said
    assert "Go on with the same command and --resume." in said
    before = describe_interrupted(output)
    resumed = command(tiny_checkpoint, rows, output, "--resume")
    status, said = interrupt(resumed, lambda _: describe_interrupted(output) != before, signum)
    assert status == INTERRUPTED and "Traceback" not in said and "the last snapshot is" in said


def test_a_run_without_a_snapshot_says_so(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    log = output / "training/log.csv"
    arguments = command(tiny_checkpoint, rows, output, "--save-steps", STEPS)
    status, said = interrupt(arguments, lambda _: log.exists(), signal.SIGINT, times=3)
    assert status == INTERRUPTED and "Traceback" not in said
    assert f"interrupted: no snapshot was written in {output}/training yet" in said and "--resume begins again" in said


def test_a_run_that_still_loads_its_libraries(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    arguments = command(tiny_checkpoint, rows, tmp_path / "out")

    def loads_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")

    status, said = interrupt(arguments, loads_torch, signal.SIGINT)
    assert status == INTERRUPTED and "Traceback" not in said
    assert said.startswith("\ninterrupted: ") and "nothing was written." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "data"),
    [("finetune.mine", ["--data"]), ("finetune.evaluate", ["--similarity"])],
    ids=["mine", "evaluate"],
)
def test_the_other_commands(module: str, data: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """They read rows from a pipe that never ends, and are interrupted there."""
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    source = f"s={pipe}" if module == "finetune.evaluate" else str(pipe)
    output = tmp_path / "out.jsonl"
    arguments = [sys.executable, "-m", module, "--checkpoint", str(tiny_checkpoint), "--output", str(output)]
    writers: list[int] = []

    def reads(_: int) -> bool:
        try:
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads yet
            return False
        return True

    status, said = interrupt([*arguments, *data, source], reads, signal.SIGINT)
    os.close(writers[0])
    assert status == INTERRUPTED and "Traceback" not in said
    assert said.rstrip().splitlines()[-1].startswith("interrupted: ") and str(output) in said
    assert not output.exists()
