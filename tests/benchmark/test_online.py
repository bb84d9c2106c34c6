"""An online run: every request is sent at its time, counted from its time, and counted if it fails."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from benchmark.peers.measure import Point, online
from benchmark.workload import Item

ITEMS: list[Item] = [("a", b""), ("b", b"")]


def test_items_are_sent_in_turn() -> None:
    seen: list[str] = []
    point = online(lambda items: seen.extend(text for text, _ in items), ITEMS, np.array([0.01, 0.02, 0.03]))
    assert sorted(seen) == ["a", "a", "b"]
    assert point.failures == 0
    assert point.offered == pytest.approx(100)


def test_waiting_counts_from_the_time_of_arrival() -> None:
    busy = threading.Lock()

    def one_at_a_time(items: list[Item]) -> None:
        with busy:
            time.sleep(0.05)

    point = online(one_at_a_time, ITEMS, np.full(10, 0.001))
    assert point.p99_ms >= 450  # the last one waited for nine others
    assert point.throughput <= 20.1
    assert not point.kept_up


def test_failures_are_counted_and_end_nothing() -> None:
    def fail(items: list[Item]) -> None:
        if items == [ITEMS[0]]:
            raise ValueError(items)

    point = online(fail, ITEMS, np.linspace(0.01, 0.04, 4))
    assert point.failures == 2
    assert not point.kept_up


def test_a_system_that_answers_nothing_has_no_latency() -> None:
    def fail(items: list[Item]) -> None:
        raise ValueError(items)

    point = online(fail, ITEMS, np.array([0.01]))
    assert point == Point(pytest.approx(100), 0.0, *[float("inf")] * 3, failures=1)
