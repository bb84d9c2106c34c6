"""What goes wrong while a run writes: killed processes, a full disk, a server that dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.bulk.conftest import SHARD_SIZE, read_folder
from tests.client.conftest import MemoryTransport
from vlembed.bulk import embed_files, verify
from vlembed.bulk._manifest import read_manifest
from vlembed.bulk._shards import sha256_of

SEEDS = range(20)
NUM_ROWS = 120
BAD_ROWS = {7, 8, 50, 111}
ANSWER_S = 0.004  # of the server in memory: 30 requests are a run of some tenths of a second


def write_rows(path: Path) -> Path:
    rows = [{"id": f"id {n}", "text": "bad" if n in BAD_ROWS else f"text {n}"} for n in range(NUM_ROWS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def embed(source: Path, output: Path, *, retry_errors: bool, answer_s: float) -> None:
    """Run in a process of its own."""
    memory = MemoryTransport()
    memory.before_answer = lambda: time.sleep(answer_s)
    options: dict[str, Any] = {"client_options": {"transport": memory, "concurrency": 2}, "retry_errors": retry_errors}
    embed_files(source, output, url="memory", shard_size=SHARD_SIZE, **options)


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Start processes that have imported everything: in milliseconds, by a server that forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pyarrow.parquet"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield context


def run_and_kill(processes: Any, after_s: float | None, *arguments: Any, **options: Any) -> bool:
    """Tell whether a run ended before it was killed."""
    process = processes.Process(target=embed, args=arguments, kwargs=options)
    process.start()
    process.join(after_s)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode == 0)


def assert_whole(output: Path) -> None:
    """Hold the folders themselves, not only what the manifest names, against the input."""
    report = verify(output)
    rows, errors = read_folder(output / "shards"), read_folder(output / "errors")
    assert sorted(row["position"] for row in rows + errors) == list(range(NUM_ROWS))
    assert {row["position"] for row in errors} == BAD_ROWS
    assert (report.num_rows, report.num_embedded) == (NUM_ROWS, NUM_ROWS - len(BAD_ROWS))
    assert not list(output.rglob("*.tmp"))
    for file in read_manifest(output).files():
        assert sha256_of(output / file["name"]) == file["sha256"]


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_that_are_killed_at_any_moment(tmp_path: Path, processes: Any, seed: int) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl"), tmp_path / "output"
    chance = random.Random(seed)
    finished = dict[int, float]()  # shards by the time of their file, which no later run touches
    while not run_and_kill(processes, chance.uniform(0.05, 0.5), source, output, retry_errors=False, answer_s=ANSWER_S):
        if (output / "manifest.jsonl").exists():
            times = {
                n: (output / r["files"][0]["name"]).stat().st_mtime for n, r in read_manifest(output).records.items()
            }
            assert finished.items() <= times.items()
            finished = times
    assert_whole(output)


@pytest.mark.parametrize("seed", SEEDS)
def test_retries_that_are_killed_at_any_moment(tmp_path: Path, processes: Any, seed: int) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl"), tmp_path / "output"
    assert run_and_kill(processes, None, source, output, retry_errors=False, answer_s=0)
    chance = random.Random(seed)
    while not run_and_kill(processes, chance.uniform(0.01, 0.1), source, output, retry_errors=True, answer_s=ANSWER_S):
        verify(output)
    assert_whole(output)
