"""Requests that are sent again: which, how often, after what pause, and never for longer than asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import MemoryTransport, Tensors
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
    ServerError,
    VlembedError,
    _retry,
)
from vlembed._retry import Budget, RetryTransport

AT_ONCE = Retry(initial_backoff_s=0)
HOUR_S = 3600.0


class Failing:
    """Raises the errors given, one each time, then answers; keeps the timeouts that it was given."""

    def __init__(self, *errors: VlembedError) -> None:
        self.errors = list(errors)
        self.timeouts_s: list[float] = []

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> Tensors:
        self.timeouts_s.append(timeout_s)
        if self.errors:
            raise self.errors.pop(0)
        return {}

    def is_ready(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        pass


def ask(transport: RetryTransport, timeout_s: float = HOUR_S) -> Any:
    return transport.infer("embed", {}, (), timeout_s)


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no pause shorter than it may be."""
    monkeypatch.setattr(_retry.random, "uniform", lambda low, high: high)


# --- which, and how often ---


@pytest.mark.parametrize("kind", [ConnectError, OverloadedError])
@pytest.mark.parametrize("num_failures", [1, 4])
def test_lost_and_refused_requests_are_sent_again(kind: type[VlembedError], num_failures: int) -> None:
    failing = Failing(*[kind("x")] * num_failures)
    assert ask(RetryTransport(failing, AT_ONCE, 1)) == {}
    assert len(failing.timeouts_s) == num_failures + 1


@pytest.mark.parametrize("kind", [RequestTimeoutError, ServerError, InvalidInputError, ProtocolError])
def test_others_are_not(kind: type[VlembedError]) -> None:
    failing = Failing(kind("x"))
    with pytest.raises(kind):
        ask(RetryTransport(failing, AT_ONCE, 1))
    assert len(failing.timeouts_s) == 1


def test_the_last_error_is_raised() -> None:
    failing = Failing(*[ConnectError(str(number)) for number in range(9)])
    with pytest.raises(ConnectError, match=r"^2$"):
        ask(RetryTransport(failing, Retry(max_attempts=3, initial_backoff_s=0), 1))


def test_one_attempt_is_no_retry() -> None:
    failing = Failing(ConnectError("x"))
    with pytest.raises(ConnectError):
        ask(RetryTransport(failing, Retry(max_attempts=1), 1))
    assert len(failing.timeouts_s) == 1


def test_overloads_can_be_left_to_the_caller() -> None:
    failing = Failing(ConnectError("x"), OverloadedError("x"))
    with pytest.raises(OverloadedError):
        ask(RetryTransport(failing, AT_ONCE, 1).on_connect_errors_only())
    assert len(failing.timeouts_s) == 2


def test_the_budget_bounds_all_retries_of_a_client() -> None:
    num_requests, retry = 1000, Retry(initial_backoff_s=0, budget=0.2, reserve=20)
    failing = Failing(*[ConnectError("down")] * 10_000)
    transport = RetryTransport(failing, retry, 1)
    for one in [transport, transport.on_connect_errors_only()] * (num_requests // 2):
        with pytest.raises(ConnectError):
            ask(one)
    num_retries = len(failing.timeouts_s) - num_requests
    assert num_retries == pytest.approx(0.2 * num_requests + 20, abs=1)


def test_what_was_saved_up_is_no_more_than_the_reserve() -> None:
    budget = Budget(Retry(budget=1, reserve=3))
    for _ in range(100):
        budget.deposit()
    assert [budget.withdraw() for _ in range(5)] == [True, True, True, False, False]


def test_without_a_reserve_there_are_still_retries() -> None:
    budget = Budget(Retry(budget=0.5, reserve=0))
    assert not budget.withdraw()
    for _ in range(2):
        budget.deposit()
    assert [budget.withdraw(), budget.withdraw()] == [True, False]


# --- pauses and deadlines ---


def test_pauses_are_random_and_grow_to_a_bound() -> None:
    retry = Retry(initial_backoff_s=1, max_backoff_s=10)
    for num_failures, most in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (5000, 10)]:
        pauses = [retry.backoff_s(num_failures) for _ in range(500)]
        assert 0 <= min(pauses) < 0.1 * most
        assert 0.9 * most < max(pauses) <= most


def test_each_attempt_has_its_timeout_or_what_is_left() -> None:
    failing = Failing(ConnectError("x"))
    ask(RetryTransport(failing, AT_ONCE, 60), timeout_s=HOUR_S)
    ask(RetryTransport(failing, AT_ONCE, 60), timeout_s=5)
    assert failing.timeouts_s[:2] == [60, 60]
    assert 0 < failing.timeouts_s[2] <= 5


def test_no_pause_beyond_the_deadline(longest_pauses: None) -> None:
    failing = Failing(ConnectError("x"))
    with pytest.raises(ConnectError):
        ask(RetryTransport(failing, Retry(initial_backoff_s=HOUR_S, max_backoff_s=HOUR_S), 60), timeout_s=HOUR_S / 2)
    assert len(failing.timeouts_s) == 1


def test_nothing_is_sent_after_the_deadline() -> None:
    failing = Failing()
    with pytest.raises(RequestTimeoutError, match="total_timeout_s"):
        ask(RetryTransport(failing, AT_ONCE, 60), timeout_s=0)
    assert not failing.timeouts_s


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_calls_total_time_holds_for_all_its_requests(scheme: str) -> None:
    memory = MemoryTransport()
    released = threading.Event()
    with SERVE[scheme](memory) as url, EmbeddingClient(url, timeout_s=HOUR_S, total_timeout_s=0.3) as client:
        client.info()
        memory.before_answer = released.wait
        try:
            with pytest.raises(RequestTimeoutError):
                client.embed(TEXTS)
        finally:
            released.set()


def test_closing_ends_a_pause(longest_pauses: None) -> None:
    memory = MemoryTransport()
    asked = threading.Event()

    def fail() -> None:
        asked.set()
        raise OverloadedError("full")

    memory.before_answer = fail
    errors: list[VlembedError] = []
    client = EmbeddingClient("memory", transport=memory, retry=Retry(initial_backoff_s=HOUR_S, max_backoff_s=HOUR_S))

    def embed() -> None:
        with pytest.raises(VlembedError) as caught:
            client.embed("a")
        errors.append(caught.value)

    thread = threading.Thread(target=embed)
    thread.start()
    asked.wait()
    client.close()
    thread.join()
    assert [type(error) for error in errors] == [OverloadedError]


@pytest.mark.parametrize(
    "arguments",
    [{"max_attempts": 0}, {"initial_backoff_s": -1}, {"max_backoff_s": -1}, {"budget": 2}, {"reserve": -1}],
    ids=str,
)
def test_wrong_values(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=rf"Retry\.{next(iter(arguments))} is .* Pass"):
        Retry(**arguments)


def test_a_wrong_total_time() -> None:
    with pytest.raises(InvalidInputError, match="total_timeout_s is 0"):
        EmbeddingClient("grpc://127.0.0.1:1", total_timeout_s=0)


# --- on real sockets ---


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_broken_connections_cost_nothing(scheme: str) -> None:
    """Answers are cut and connections reset while texts are embedded; every row comes, and nothing stays open."""
    num_before = num_sockets()
    with SERVE[scheme](MemoryTransport()) as url, Proxy(url) as proxy:
        with EmbeddingClient(proxy.url, retry=Retry(initial_backoff_s=0.01)) as client:
            client.info()
            for number in range(6):
                if number % 2:
                    proxy.num_answers_to_cut = 2
                else:
                    proxy.reset()
                np.testing.assert_array_equal(client.embed(TEXTS).array, expected(TEXTS))
        assert proxy.num_accepted > 6
    assert not client_threads()
    eventually(lambda: num_sockets() <= num_before, "sockets are left open")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_away_for_a_moment(scheme: str) -> None:
    with SERVE[scheme](MemoryTransport()) as url, Proxy(url) as proxy:
        retry = Retry(max_attempts=50, initial_backoff_s=0.05, max_backoff_s=0.2, reserve=200)
        with EmbeddingClient(proxy.url, retry=retry) as client:
            client.info()
            proxy.go_down()
            timer = threading.Timer(0.3, proxy.come_back)
            timer.start()
            np.testing.assert_array_equal(client.embed(TEXTS).array, expected(TEXTS))
            timer.join()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_overloaded_server_is_asked_again(scheme: str) -> None:
    memory = MemoryTransport()
    refusals = iter([True, True])

    def refuse() -> None:
        if next(refusals, False):
            raise OverloadedError("Exceeds maximum queue size")

    memory.before_answer = refuse
    with SERVE[scheme](memory) as url, EmbeddingClient(url, retry=Retry(initial_backoff_s=0.01)) as client:
        np.testing.assert_array_equal(client.embed("a").array, expected(["a"]))


def test_an_answer_that_trickles_does_not_outlast_its_timeout() -> None:
    with (
        SERVE["http"](MemoryTransport()) as url,
        Proxy(url) as proxy,
        EmbeddingClient(proxy.url, timeout_s=0.3) as client,
    ):
        proxy.piece_bytes, proxy.delay_s = 1, 0.02
        began_at = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            client.info()  # hundreds of bytes, each of which comes in time
        assert time.monotonic() - began_at < 5
