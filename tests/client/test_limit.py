"""The limit of requests in flight: half after an overload, one more after each good round."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress

import pytest

from tests.client.faults import eventually
from vlembed import ConnectError, OverloadedError
from vlembed._limit import AdaptiveLimit


def limit_of(most: int) -> AdaptiveLimit:
    return AdaptiveLimit(most, lambda num_overloads: 0.0)


def refuse(limit: AdaptiveLimit, number: int = 1) -> None:
    """Send so many together, all of which are refused."""
    with ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(suppress(OverloadedError))
            stack.enter_context(limit.slot())
        raise OverloadedError("full")


def accept(limit: AdaptiveLimit, number: int) -> None:
    for _ in range(number):
        with limit.slot():
            pass


def test_an_overload_halves_it_to_one_at_least() -> None:
    limit = limit_of(8)
    seen = []
    for _ in range(5):
        seen.append(limit.current)
        refuse(limit)
    assert seen == [8, 4, 2, 1, 1]


def test_a_round_that_is_refused_halves_it_once() -> None:
    limit = limit_of(8)
    slots = [limit.slot() for _ in range(6)]
    for slot in slots:
        slot.__enter__()
    for slot in slots:
        assert not slot.__exit__(OverloadedError, OverloadedError("full"), None)
    assert limit.current == 4


def test_a_good_round_adds_one_up_to_the_most() -> None:
    limit = limit_of(4)
    refuse(limit)
    refuse(limit)
    assert limit.current == 1
    accept(limit, 1)
    assert limit.current == 2
    accept(limit, 2)
    assert limit.current == 2  # 2.9: a part of one is none
    accept(limit, 1)
    assert limit.current == 3
    accept(limit, 100)
    assert limit.current == 4


def test_pauses_grow_with_overloads_in_a_row() -> None:
    asked: list[int] = []

    def backoff_s(num_overloads: int) -> float:
        asked.append(num_overloads)
        return 0.0

    limit = AdaptiveLimit(4, backoff_s)
    refuse(limit)
    refuse(limit)
    accept(limit, 1)
    refuse(limit)
    assert asked == [1, 2, 1]


def test_no_more_than_the_limit_at_a_time() -> None:
    limit = limit_of(2)
    inside, entered, leave = [], threading.Semaphore(0), threading.Event()

    def work() -> None:
        with limit.slot():
            inside.append(1)
            entered.release()
            leave.wait()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        entered.acquire()
    assert len(inside) == 2
    leave.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 5


def test_stopping_wakes_who_waits() -> None:
    limit = AdaptiveLimit(1, lambda num_overloads: 3600.0)
    refuse(limit)
    errors: list[ConnectError] = []

    def work() -> None:
        with pytest.raises(ConnectError) as caught, limit.slot():
            pass
        errors.append(caught.value)

    thread = threading.Thread(target=work)
    thread.start()
    limit.stop()
    thread.join()
    assert "closed" in str(errors[0])
    eventually(lambda: not thread.is_alive(), "the thread waits on")
