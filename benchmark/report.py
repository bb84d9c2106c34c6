"""How results are taken and written: a table for people, one JSON line for machines, with date, commit and hardware."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def rates(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Run the contestants in turn, `rounds` times over, and return the median items per second of each.

    Taking turns lets a noisy neighbour disturb all of them alike: read the ratios, not the rates.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()  # warm
    for _ in range(rounds):
        for name, work in contestants.items():
            started = time.perf_counter()
            items = work()
            taken[name].append(items / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def report(name: str, rows: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Print the rows, then one JSON line, and return it: the last line of a run is what benchmark/results holds."""
    for what, value in rows.items():
        print(f"{what:<58} {value:10.3f}" if isinstance(value, float) else f"{what:<58} {value:>10}")
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    context = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit,
        "hardware": f"{os.cpu_count()} x {_processor()}",
    }
    whole = {**context, **settings, "results": rows}
    print(json.dumps(whole, ensure_ascii=False))
    return whole


def markdown(rows: dict[str, float], columns: list[str]) -> str:
    """Return a table as README has it: rows named `what: column` become a line `what` with a cell for each column."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for what in dict.fromkeys(name.rpartition(": ")[0] for name in rows):
        cells = [rows.get(f"{what}: {column}") for column in columns]
        if any(cell is not None for cell in cells):
            lines.append([what, *("–" if cell is None else f"{cell:,.2f}" for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cpu_flags() -> list[str]:
    """Return which of the instructions that decide the speed of matrix products this processor has."""
    known = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"}
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return sorted({flag for line in lines if line.startswith("flags") for flag in line.split()} & known)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
