"""`embed_many` on real servers: killed and restarted in the middle, and overloaded."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.launch import TritonServer
from server.network import HTTP
from tests.client.faults import client_threads, eventually, num_sockets
from tests.samples import encode, image
from vlembed import EmbeddingClient, Item, Retry, _failover

pytestmark = pytest.mark.triton

ATOL = 1e-4  # neighbours of a batch change the rounding
PICTURES = [encode(image(width, 64, seed=width), "JPEG") for width in range(64, 320, 32)]
ITEMS = [
    PICTURES[number % 8]
    if number % 20 == 0
    else Item(f"{number}", PICTURES[3])
    if number % 33 == 0
    else f"{number} " * 9
    for number in range(1000)
]
PATIENT = Retry(max_attempts=200, max_backoff_s=1, reserve=2000)  # a restart takes some seconds


class Mortal:
    """A server that can be killed and started again at the same ports."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.ports = {"http": 0, "grpc": 0, "metrics": 0}
        self.stack = ExitStack()

    def start(self) -> None:
        ports = {f"{name}_port": port for name, port in self.ports.items()}
        self.server = self.stack.enter_context(TritonServer(self.repository, **ports))  # type: ignore[arg-type]
        self.ports = self.server.ports

    def kill(self) -> None:
        os.killpg(self.server.pid, signal.SIGKILL)
        self.stack.close()  # what it left in /dev/shm


@pytest.fixture(scope="module")
def mortal(demo_server: TritonServer) -> Iterator[Mortal]:
    server = Mortal(demo_server.repository)
    server.start()
    yield server
    server.stack.close()


@pytest.fixture(scope="module")
def expected(demo_server: TritonServer) -> Any:
    with EmbeddingClient(demo_server.grpc_url) as client:
        return client.embed(ITEMS)


def check_rows(rows: list[Any], expected: Any) -> None:
    assert [row.index for row in rows] == list(range(len(expected)))
    np.testing.assert_allclose(np.array([row.embedding for row in rows]), expected.array, atol=ATOL)
    assert [row.text_tokens for row in rows] == expected.text_tokens.tolist()
    assert [row.image_tokens for row in rows] == expected.image_tokens.tolist()
    assert {row.fingerprint for row in rows} == {expected.fingerprint}


def embed_through_a_restart(urls: list[str], mortal: Mortal) -> list[Any]:
    """Embed all items; kill the server at row 100, and start it again at row 200, or at once if it is the only one."""
    num_before = num_sockets()
    starting = threading.Thread(target=mortal.start)
    rows = []
    with EmbeddingClient(urls, retry=PATIENT) as client:
        for row in client.embed_many(ITEMS):
            rows.append(row)
            if row.index == 100:
                mortal.kill()
            if row.index == (100 if len(urls) == 1 else 200):
                starting.start()
        starting.join()
    assert not client_threads()
    eventually(lambda: num_sockets() <= num_before + 1, "sockets are left open")  # the new server's log is a pipe
    return rows


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_only_server_is_killed_and_restarted(mortal: Mortal, expected: Any, scheme: str) -> None:
    url = getattr(mortal.server, f"{scheme}_url")
    check_rows(embed_through_a_restart([url], mortal), expected)


def test_one_of_two_servers_is_killed_and_restarted(
    demo_server: TritonServer, mortal: Mortal, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_failover, "MAX_REST_S", 0.5)
    urls = [demo_server.grpc_url, mortal.server.http_url]
    check_rows(embed_through_a_restart(urls, mortal), expected)


def test_a_server_whose_queue_is_full(demo_server: TritonServer, expected: Any, tmp_path: Path) -> None:
    """The same models with a queue for one request: more are refused, by the real server in its own words."""
    repository = Path(shutil.copytree(demo_server.repository, tmp_path / "demo"))
    config = repository / "language_model/config.pbtxt"
    limited, count = re.subn(
        r"dynamic_batching \{.*\}",
        "dynamic_batching { default_queue_policy { max_queue_size: 1 } }",
        config.read_text(encoding="utf-8"),
    )
    assert count == 1
    config.write_text(limited, encoding="utf-8")
    none = Retry(max_attempts=1, initial_backoff_s=0.02, max_backoff_s=0.5, budget=0, reserve=0)
    with TritonServer(repository) as server, EmbeddingClient(server.grpc_url, concurrency=16, retry=none) as client:
        bounds = client.info().bounds
        assert isinstance(bounds, dict)
        bounds["max_items"] = 4  # many small packs, which preprocess makes faster than the tower takes them
        rows = list(client.embed_many(ITEMS[:300]))
        assert num_refused(server) > 0
    assert [row.index for row in rows] == list(range(300))
    np.testing.assert_allclose(np.array([row.embedding for row in rows]), expected.array[:300], atol=ATOL)


def num_refused(server: TritonServer) -> int:
    """Return how many requests failed, as the server counts them; they are all good but for the full queue."""
    with HTTP.open(f"http://127.0.0.1:{server.ports['metrics']}/metrics") as response:
        metrics = response.read().decode()
    return sum(
        map(int, re.findall(r'^nv_inference_request_failure\{model="embed\w*",.*\} (\d+)$', metrics, re.MULTILINE))
    )
