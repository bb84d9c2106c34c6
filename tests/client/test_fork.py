"""Forked children: they make connections, locks and threads of their own, and every vector is that of its text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.launch import TritonServer
from tests.client.conftest import MemoryTransport
from tests.client.faults import SERVE

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
ANSWER_S = 0.002  # how long the server takes, so that requests of several processes meet
KINDS = ("flat", "hnsw", "int8", "binary", "ivfpq")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def run(program: str, argument: str, folder: Path) -> None:
    """Run a program of `forks` in a process of its own, which has no other threads."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "tests.client.forks", program, argument]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children, too
            raise
    assert process.returncode == 0 and "Error" not in errors, errors


@pytest.fixture(params=SERVE)
def url(request: pytest.FixtureRequest, memory: MemoryTransport) -> Iterator[str]:
    """Serve vectors that tell their texts."""
    memory.before_answer = lambda: time.sleep(ANSWER_S)
    with SERVE[request.param](memory) as served:
        yield served


@pytest.mark.parametrize(
    "program",
    [
        *["used", "unused", "nested", "ends_as_usual", "processes", "process_pool", "in_the_middle_of_calls"],
        *["stream", "source_that_forks", "closed", "closed_in_the_child", "model_is_asked_again", "pauses"],
    ],
)
def test_clients(program: str, url: str, tmp_path: Path) -> None:
    if program == "in_the_middle_of_calls" and url.startswith("grpc"):
        pytest.skip("gRPC itself cannot be forked in the middle of a call")
    run(program, url, tmp_path)


def test_workers_of_a_data_loader(url: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run("data_loader", url, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_indexes(kind: str, tmp_path: Path) -> None:
    run("index", kind, tmp_path)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("program", ["index_that_is_searched", "index_that_is_changed"])
def test_indexes_at_work(program: str, kind: str, tmp_path: Path) -> None:
    run(program, kind, tmp_path)


@pytest.mark.parametrize("kind", ["flat", "binary"])
def test_indexes_in_a_file(kind: str, tmp_path: Path) -> None:
    run("index_in_a_file", kind, tmp_path)


def test_a_collection_in_milvus(tmp_path: Path) -> None:
    run("collection", str(tmp_path), tmp_path)


@pytest.mark.triton
@pytest.mark.parametrize("protocol", SERVE)
def test_a_real_server(protocol: str, server: TritonServer, tmp_path: Path) -> None:
    run("real_server", getattr(server, f"{protocol}_url"), tmp_path)
