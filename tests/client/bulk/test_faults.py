"""What goes wrong while a run writes: killed processes, a full disk, a server that dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.launch import TritonServer
from tests.client.bulk.conftest import SHARD_SIZE, Run, read_folder
from tests.client.conftest import MemoryTransport
from tests.samples import encode, image
from vlembed import EmbeddingClient, OutputError
from vlembed.bulk import embed_files, verify
from vlembed.bulk._manifest import read_manifest
from vlembed.bulk._shards import FileRecord

COSINE = 0.9999  # the promise of batch invariance
NUM_ROWS = 120
REFUSED = {7, 50}  # rows with a text that the server refuses
LATE = {8, 111}  # rows with an image that is not there at first
ANSWER_S = 0.06  # of the server in memory: 30 packs, 4 at a time, make a run of 0.45 s at least


def write_rows(path: Path) -> Path:
    rows: list[dict[str, str]] = [{"id": f"id {number}", "text": f"text {number}"} for number in range(NUM_ROWS)]
    for number in REFUSED:
        rows[number]["text"] = "bad"
    for number in LATE:
        rows[number]["image"] = "late.png"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def embed(source: Path, output: Path, **options: Any) -> None:
    """Run in a process of its own."""
    memory = MemoryTransport()
    memory.before_answer = lambda: time.sleep(ANSWER_S)
    embed_files(source, output, url="memory", shard_size=SHARD_SIZE, client_options={"transport": memory}, **options)


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Start processes that have imported everything: in milliseconds, by a server that forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pandas", "pyarrow.parquet"])
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


def modified(output: Path, file: FileRecord) -> float:
    return (output / file["name"]).stat().st_mtime


def assert_whole(output: Path, failed: set[int]) -> None:
    """Hold the folders themselves, not only what the manifest names, against the input."""
    report = verify(output)
    rows, errors = read_folder(output / "shards"), read_folder(output / "errors")
    assert sorted(row["position"] for row in rows + errors) == list(range(NUM_ROWS))
    assert {row["position"] for row in errors} == failed
    assert (report.num_rows, report.num_embedded) == (NUM_ROWS, NUM_ROWS - len(failed))
    assert not list(output.rglob("*.tmp"))
    manifest = read_manifest(output)
    names = {file["name"] for file in (*manifest.vector_files(), *manifest.error_files())}
    assert names == {path.relative_to(output).as_posix() for path in output.rglob("*.parquet")}


@pytest.mark.parametrize("seed", range(20))
def test_runs_that_are_killed_at_any_moment(tmp_path: Path, processes: Any, seed: int) -> None:
    source, output, chance = write_rows(tmp_path / "rows.jsonl"), tmp_path / "output", random.Random(seed)
    times: dict[str, float] = {}  # of files that count
    for _ in range(3):
        run_and_kill(processes, chance.uniform(0, 0.3), source, output)
        if (output / "manifest.jsonl").exists():
            before, times = (
                times,
                {file["name"]: modified(output, file) for file in read_manifest(output).vector_files()},
            )
            assert before.items() <= times.items()  # nothing was done again
    assert run_and_kill(processes, None, source, output)
    assert_whole(output, REFUSED | LATE)
    (tmp_path / "late.png").write_bytes(encode(image(8, 8)))
    for _ in range(3):
        run_and_kill(processes, chance.uniform(0, 0.1), source, output, retry_errors=True)
        verify(output)
    assert run_and_kill(processes, None, source, output, retry_errors=True)
    assert_whole(output, REFUSED)


@pytest.mark.parametrize("num_bytes", [1, 2, 100, 300])
def test_a_manifest_that_ends_within_a_line(run: Run, tmp_path: Path, output: Path, num_bytes: int) -> None:
    source = write_rows(tmp_path / "rows.jsonl")
    run(source)
    manifest = output / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-num_bytes])
    with pytest.raises(OutputError, match=r"only 11 of 12 shards of .* are finished"):
        verify(output)
    run(source)
    assert_whole(output, REFUSED | LATE)


def test_a_run_that_was_killed_while_it_planned(run: Run, tmp_path: Path, output: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl")
    run(source)
    (output / "manifest.jsonl").unlink()
    (output / ".1-abcd.tmp").touch()
    run(source)
    assert_whole(output, REFUSED | LATE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("free_bytes", range(0, 40_000, 4000))
def test_a_full_disk(run: Run, tmp_path: Path, small_disk: Path, free_bytes: int) -> None:
    source, output, ballast = write_rows(tmp_path / "rows.jsonl"), small_disk / "output", small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - free_bytes))
    with pytest.raises(OutputError, match=r"No space left on device.*Free space"):
        embed_files(
            source, output, url="memory", shard_size=SHARD_SIZE, client_options={"transport": MemoryTransport()}
        )
    ballast.unlink()
    embed_files(source, output, url="memory", shard_size=SHARD_SIZE, client_options={"transport": MemoryTransport()})
    assert_whole(output, REFUSED | LATE)


@pytest.mark.triton
def test_a_server_that_is_killed_in_the_middle_of_a_run(demo_server: TritonServer, tmp_path: Path) -> None:
    texts = [f"{number} red apples and a green one" for number in range(2000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    output = tmp_path / "output"
    with TritonServer(demo_server.repository) as server, ThreadPoolExecutor(1) as pool:
        url, ports = server.grpc_url, server.ports
        report = pool.submit(embed_files, tmp_path / "rows.jsonl", output, url=url, shard_size=200)
        while not (output / "manifest.jsonl").exists() or len(read_manifest(output).records) < 3:
            assert not report.done()
            time.sleep(0.01)
        server.kill()
        assert len(read_manifest(output).records) < 10
        with TritonServer(demo_server.repository, http_port=ports["http"], grpc_port=ports["grpc"]):
            assert report.result(120).num_embedded == len(texts)
    assert verify(output).errors == {}
    rows = read_folder(output / "shards")
    with EmbeddingClient(demo_server.grpc_url) as client:
        theirs = client.embed(texts).array
    assert [row["id"] for row in rows] == [f"rows.jsonl:{number}" for number in range(1, len(texts) + 1)]
    assert (np.array([row["embedding"] for row in rows]) * theirs).sum(1).min() >= COSINE
