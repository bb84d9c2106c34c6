"""How a system is measured: items per second, the latency of single requests, and both under Poisson arrivals."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..workload import Item

MAX_IN_FLIGHT = 256  # of an online run; later arrivals wait, and their wait counts
KEPT_UP = 0.9  # of the offered rate: below, the queue grows as long as the load lasts


@dataclass(frozen=True)
class Point:
    """What a system made of requests at one rate."""

    offered: float  # requests/s
    throughput: float  # requests/s
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failures: int

    @property
    def kept_up(self) -> bool:
        """Whether the system answered as fast as requests came."""
        return not self.failures and self.throughput >= KEPT_UP * self.offered


def rate(embed: Callable[[list[Item]], object], items: list[Item]) -> float:
    """Return items per second."""
    started = time.perf_counter()
    embed(items)
    return len(items) / (time.perf_counter() - started)


def latency_ms(embed: Callable[[list[Item]], object], items: list[Item]) -> float:
    """Return the median time of items sent one after the other."""
    return statistics.median(1e3 / rate(embed, [item]) for item in items)


def online(embed: Callable[[list[Item]], object], items: list[Item], arrivals: npt.NDArray[np.float64]) -> Point:
    """Send one item at each time of `arrivals`, whatever became of those before.

    Latency counts from the time of arrival, so that a request that could not be sent in time is not forgiven.
    """
    ends: list[tuple[float, float]] = []  # arrival and answer
    failures = 0
    lock = threading.Lock()
    started = time.perf_counter()

    def one(item: Item, due: float) -> None:
        nonlocal failures
        try:
            embed([item])
        except Exception:  # whatever a client raises: it is counted, and the load goes on
            with lock:
                failures += 1
            return
        with lock:
            ends.append((due, time.perf_counter() - started))

    with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
        for number, due in enumerate(arrivals.tolist()):
            time.sleep(max(0.0, started + due - time.perf_counter()))
            pool.submit(one, items[number % len(items)], due)
    offered = len(arrivals) / float(arrivals[-1])  # what came, which is never quite the rate that was asked for
    if not ends:
        return Point(offered, 0.0, float("inf"), float("inf"), float("inf"), failures)
    p50, p95, p99 = np.percentile([1e3 * (end - due) for due, end in ends], [50, 95, 99]).tolist()
    return Point(offered, len(ends) / max(end for _, end in ends), p50, p95, p99, failures)
