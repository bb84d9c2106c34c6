"""Several servers behind one client: who is asked, who is left alone, and that no other model gets in."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest

from tests.client.conftest import INFO, MemoryTransport, Tensors
from tests.client.faults import SERVE, Proxy, client_threads, eventually, num_sockets
from tests.client.test_client import TEXTS, expected
from vlembed import (
    ConnectError,
    EmbeddingClient,
    InvalidInputError,
    OverloadedError,
    ProtocolError,
    RequestTimeoutError,
    Retry,
    VlembedError,
    _failover,
)
from vlembed._failover import FailoverTransport

HOUR_S = 3600.0


class Server(MemoryTransport):
    """A server whose state can be set: the error that it answers with, its readiness and its model."""

    def __init__(self, fingerprint: str = "model-a") -> None:
        super().__init__(max_items=64)
        self.fingerprint = fingerprint
        self.error: VlembedError | None = None
        self.readiness = True
        self.asked: list[str] = []
        self.is_closed = False

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> Tensors:
        self.asked.append(model)
        if self.error:
            raise self.error
        if model == "info":
            return {"info": np.array([json.dumps(INFO | {"fingerprint": self.fingerprint}).encode()], np.object_)}
        return super().infer(model, inputs, outputs, timeout_s)

    def is_ready(self, timeout_s: float) -> bool:
        self.asked.append("ready")
        if self.error:
            raise self.error
        return self.readiness

    def close(self) -> None:
        self.is_closed = True


class Pair:
    """Two servers, a and b, as one; no time passes but what `wait` lets pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(_failover.time, "monotonic", lambda: self.now)
        self.a, self.b = Server(), Server()
        self.transport = FailoverTransport({"a": self.a, "b": self.b})

    def ask(self, number: int = 1) -> None:
        for _ in range(number):
            text = np.array([b"a"], np.object_)
            answer = self.transport.infer("embed_text", {"text": text}, (), HOUR_S)
            assert len(answer["embedding"]) == 1

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def forget(self) -> None:
        self.a.asked.clear()
        self.b.asked.clear()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(monkeypatch)


# --- who is asked ---


def test_load_is_spread(pair: Pair) -> None:
    pair.ask(10)
    assert pair.a.asked == pair.b.asked == ["info"] + 5 * ["embed_text"]


def test_the_less_busy_one_is_asked(pair: Pair) -> None:
    pair.ask(2)
    pair.forget()
    started, released = threading.Event(), threading.Event()
    pair.a.before_answer = lambda: (started.set(), released.wait())
    thread = threading.Thread(target=pair.ask)
    thread.start()
    started.wait()
    pair.ask(3)
    released.set()
    thread.join()
    assert (pair.a.asked, pair.b.asked) == (["embed_text"], 3 * ["embed_text"])


def test_the_info_verifies_at_once(pair: Pair) -> None:
    pair.transport.infer("info", {}, ("info",), HOUR_S)
    assert (pair.a.asked, pair.b.asked) == (["info"], [])


@pytest.mark.parametrize("error", [ConnectError("x"), RequestTimeoutError("x")], ids=lambda error: type(error).__name__)
def test_who_failed_is_left_alone_then_probed(pair: Pair, error: VlembedError) -> None:
    pair.ask(2)
    pair.forget()
    pair.a.error = error
    if isinstance(error, ConnectError):
        pair.ask(4)  # the one that a failed at is b's
    else:
        with pytest.raises(RequestTimeoutError):
            pair.ask()
        pair.ask(4)
    assert (pair.a.asked, pair.b.asked) == (["embed_text"], 4 * ["embed_text"])
    pair.wait(_failover.FIRST_REST_S)
    pair.a.error = None
    pair.ask(4)
    assert pair.a.asked == ["embed_text", "ready", "info", "embed_text", "embed_text"]


def test_who_is_not_ready_yet_is_not_used(pair: Pair) -> None:
    pair.ask(2)
    pair.a.error = ConnectError("x")
    pair.ask(2)
    pair.a.error, pair.a.readiness = None, False
    pair.forget()
    pair.wait(_failover.FIRST_REST_S)
    pair.ask(3)
    assert (pair.a.asked, pair.b.asked) == (["ready"], 3 * ["embed_text"])


def test_who_hangs_costs_no_request(pair: Pair) -> None:
    """Neither from the start nor when it is probed: what hung was no request of the caller's."""
    pair.a.error = RequestTimeoutError("hangs")
    pair.ask(4)
    pair.wait(_failover.FIRST_REST_S)
    pair.ask(4)
    assert (pair.a.asked, pair.b.asked) == (["info", "ready"], ["info"] + 8 * ["embed_text"])
    pair.b.error = ConnectError("restarts")
    pair.wait(_failover.MAX_REST_S)
    with pytest.raises(ConnectError):  # which is retried
        pair.ask()


def test_rests_grow_to_a_bound(pair: Pair) -> None:
    pair.ask(2)
    pair.a.error = ConnectError("x")
    rests = []
    for _ in range(12):
        pair.ask(2)
        pair.forget()
        rested = 0.0
        while not pair.a.asked:
            pair.wait(0.25)
            rested += 0.25
            pair.ask()
        rests.append(rested)
    assert rests[:4] == [0.5, 1, 2, 4]
    assert rests[-1] == _failover.MAX_REST_S


def test_requests_that_fail_together_are_one_failure(pair: Pair) -> None:
    """Let four requests of one server fail at once, as when it is killed: it rests as after one."""
    together = threading.Barrier(4)
    servers = FailoverTransport({"a": pair.a})
    text = {"text": np.array([b"a"], np.object_)}
    servers.infer("embed_text", text, (), HOUR_S)

    def fail() -> None:
        together.wait()
        raise ConnectError("killed")

    def ask() -> None:
        with pytest.raises(ConnectError):
            servers.infer("embed_text", text, (), HOUR_S)

    pair.a.before_answer = fail
    pair.wait(1)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (server,) = servers._servers
    assert server.num_failures == 1


def test_if_all_fail_the_last_error_is_raised_and_they_are_tried_again(pair: Pair) -> None:
    pair.a.error, pair.b.error = ConnectError("a"), ConnectError("b")
    with pytest.raises(ConnectError, match=r"^b$"):
        pair.ask()
    pair.b.error = None
    pair.ask()  # although both rest
    assert pair.b.asked[-1] == "embed_text"


def test_an_overloaded_one_is_not_preferred_for_being_quick(pair: Pair) -> None:
    pair.ask(2)
    pair.a.error = OverloadedError("full")
    with pytest.raises(OverloadedError):
        pair.ask()
    pair.forget()
    pair.ask(5)
    assert not pair.a.asked
    pair.wait(_failover.OVERLOAD_REST_S)
    pair.a.error = None
    pair.ask(2)
    assert pair.a.asked == ["embed_text"]


# --- one model ---


def test_another_model_is_refused_at_first_use(pair: Pair) -> None:
    pair.b.fingerprint = "model-b"
    pair.ask()
    with pytest.raises(ProtocolError, match="b serves the model model-b, but a served model-a"):
        pair.ask(2)
    assert pair.b.asked == ["info"]


def test_another_model_is_refused_after_a_restart(pair: Pair) -> None:
    pair.ask(2)
    pair.a.error = ConnectError("restarts")
    pair.ask(2)
    pair.a.error, pair.a.fingerprint = None, "model-b"
    pair.wait(_failover.FIRST_REST_S)
    pair.forget()
    with pytest.raises(ProtocolError, match="a serves the model model-b, but a served model-a"):
        pair.ask(2)
    assert "embed_text" not in pair.a.asked


def test_another_model_is_refused_after_idle_time(pair: Pair) -> None:
    """Nobody was connected, so nobody saw the restart."""
    pair.ask(2)
    pair.a.fingerprint = "model-b"
    pair.wait(_failover.IDLE_S + 1)
    with pytest.raises(ProtocolError, match="model-b"):
        pair.ask(2)


def test_who_hides_its_readiness_is_judged_by_its_info(pair: Pair) -> None:
    pair.ask(2)
    pair.a.error = ConnectError("x")
    pair.ask(2)
    pair.a.error, pair.a.is_ready = None, hide  # type: ignore[method-assign]
    pair.wait(_failover.FIRST_REST_S)
    pair.forget()
    pair.ask(2)
    assert pair.a.asked == ["info", "embed_text"]


def hide(timeout_s: float) -> bool:
    raise ProtocolError("404")


# --- as one transport ---


def test_one_ready_server_is_enough(pair: Pair) -> None:
    pair.a.error = ConnectError("a")
    assert pair.transport.is_ready(1)
    pair.b.readiness = False
    assert not pair.transport.is_ready(1)
    pair.b.error = ConnectError("b")
    with pytest.raises(ConnectError, match=r"^b$"):
        pair.transport.is_ready(1)


def test_closing_closes_all(pair: Pair) -> None:
    pair.transport.close()
    assert pair.a.is_closed and pair.b.is_closed


def test_no_url() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        EmbeddingClient([])
    with pytest.raises(InvalidInputError, match="url is 'ftp://a:1'"):
        EmbeddingClient(["http://a:1", "ftp://a:1"])
    for wrong in (None, b"http://a:1", ["http://a:1", None]):
        with pytest.raises(InvalidInputError, match=r"url is .*, which is no str\. Pass one like"):
            EmbeddingClient(wrong)  # type: ignore[arg-type]


# --- on real sockets ---


def test_servers_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers, of which at most one is up at a time, over both protocols: every row comes, nothing stays open."""
    monkeypatch.setattr(_failover, "FIRST_REST_S", 0.05)
    num_before = num_sockets()
    with ExitStack() as stack:
        memories = [MemoryTransport(), MemoryTransport()]
        urls = [stack.enter_context(SERVE[s](memory)) for s, memory in zip(["grpc", "http"], memories, strict=True)]
        proxies = [stack.enter_context(Proxy(url)) for url in urls]
        retry = Retry(max_attempts=20, initial_backoff_s=0.02, max_backoff_s=0.5, reserve=200)
        with EmbeddingClient([proxy.url for proxy in proxies], retry=retry) as client:
            client.wait_until_ready()
            for down, up in [(0, 1), (1, 0), (0, 1)]:
                proxies[down].go_down()
                memories[up].requests.clear()
                np.testing.assert_array_equal(client.embed(TEXTS).array, expected(TEXTS))
                assert len(memories[up].requests) == 8  # all packs of the call
                proxies[down].come_back()
    assert not client_threads()
    eventually(lambda: num_sockets() <= num_before, "sockets are left open")


def test_a_server_that_hangs_is_left_alone() -> None:
    released = threading.Event()
    hanging, working = MemoryTransport(), MemoryTransport()
    with (
        SERVE["http"](hanging) as one,
        SERVE["grpc"](working) as other,
        EmbeddingClient([one, other], timeout_s=0.5) as client,
    ):
        client.embed(TEXTS)
        hanging.before_answer = released.wait
        try:
            with pytest.raises(RequestTimeoutError):
                client.embed(TEXTS)
            hanging.requests.clear()
            np.testing.assert_array_equal(client.embed(TEXTS).array, expected(TEXTS))
            assert not hanging.requests
        finally:
            released.set()


def test_a_server_that_hangs_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that accepts connections and never answers."""
    monkeypatch.setattr(_failover, "PROBE_TIMEOUT_S", 0.2)
    with SERVE["grpc"](MemoryTransport()) as url, socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for urls in ([hanging, url], [url, hanging]):
            with EmbeddingClient(urls) as client:
                for _ in range(4):
                    np.testing.assert_array_equal(client.embed(TEXTS).array, expected(TEXTS))
