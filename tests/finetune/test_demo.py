"""The demonstration's training and adaptation, by the commands that README names."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.build import CLDR, INSTALL
from demo.render_images import FONT

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "demo/vlembed-emoji/training/log.csv"
FIRST_STEPS = 10  # the first line of the log
LOSS_TOLERANCE = 0.003  # other processors round differently
GRADIENT_TOLERANCE = 0.1
TIMEOUT_S = 600

pytestmark = pytest.mark.skipif(
    not (FONT.is_file() and CLDR.is_dir()),
    reason=f"the emoji font or Unicode CLDR is missing: run `{INSTALL}`",
)


def first_values(log: Path) -> dict[str, float]:
    if not log.exists():
        return {}
    with log.open(encoding="utf-8", newline="") as file:
        return {row["name"]: float(row["value"]) for row in csv.DictReader(file) if row["step"] == str(FIRST_STEPS)}


def test_the_command_begins_as_the_committed_log_does(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "checkpoint"
    subprocess.run([sys.executable, "-m", "demo.build", "--output", data], cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "-m", "demo.train", "--data", data, "--output", output]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not first_values(output / "training/log.csv") and run.poll() is None and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            subprocess.run(["kill", "-KILL", "--", f"-{run.pid}"], check=False)
    ours, committed = first_values(output / "training/log.csv"), first_values(LOG)
    assert ours["loss"] == pytest.approx(committed["loss"], rel=LOSS_TOLERANCE)
    assert ours["grad_norm"] == pytest.approx(committed["grad_norm"], rel=GRADIENT_TOLERANCE)


@pytest.mark.triton
@pytest.mark.usefixtures("serving_python")
def test_adaptation_finds_more(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.adapt", "--output", tmp_path / "uk"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    found = {
        when: [float(value) for value in values.split()]
        for when, values in re.findall(r"^(before|after) +([\d. ]+)$", done.stdout, re.MULTILINE)
    }
    assert found["after"][-1] > found["before"][-1] + 0.05  # recall@10
