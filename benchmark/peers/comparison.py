"""The comparison: first a reference and the best settings, then rounds of measuring, then the table.

One system is up at a time, because the memory does not hold two of the full 2B; rounds go through all of them in turn,
so that a noisy neighbour disturbs them alike.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..environments import InstallError
from ..workload import Item, poisson_arrivals
from .measure import Point, latency_ms, online, rate
from .systems import (
    BentoMl,
    FastApi,
    Infinity,
    LitServe,
    Ours,
    OursInProcess,
    PeerProcess,
    PyTriton,
    SentenceTransformers,
    Setup,
    System,
    SystemFailedError,
    Vectors,
    Vllm,
)

MIN_COSINE = 0.98  # to the reference: below, a system computes something else, and its speed says nothing
BATCH_SIZES = (1, 4, 16, 64)  # that sentence-transformers is tried with
OURS, IN_PROCESS, REFERENCE = Ours.name, OursInProcess.name, "sentence-transformers fp32"
LIBRARY = ("sentence-transformers bf16", REFERENCE)
SERVED_PEERS: tuple[type[PeerProcess], ...] = (FastApi, LitServe, BentoMl, PyTriton, Vllm, Infinity)
SYSTEMS: dict[str, Callable[[Setup], System]] = {
    **{kind.name: kind for kind in (Ours, OursInProcess)},
    LIBRARY[0]: lambda setup: SentenceTransformers(setup, "bf16"),
    LIBRARY[1]: lambda setup: SentenceTransformers(setup, "fp32"),
    **{kind.name: kind for kind in SERVED_PEERS},
}
ONLINE = "queries"  # what online runs send, for every system embeds texts
RATES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of what sentence-transformers does offline
MAX_P99_MS = 2000.0  # of a rate that counts as sustained
SINGLE = ("queries", "images of 512 px")  # what is sent one after the other
NUM_SINGLE = 12  # of a round


def lists() -> dict[Any, list[Any]]:
    """Return an empty table of lists."""
    return defaultdict(list)


@dataclass
class Comparison:
    """What is compared, and what was found so far; keys begin with the workload, or the rate, and the system."""

    setup: Setup
    workloads: dict[str, list[Item]]
    names: Sequence[str]  # of SYSTEMS
    seconds: float  # of an online run; 0 leaves them out
    rates: dict[tuple[str, str], list[float]] = field(default_factory=lists)  # items/s
    latencies: dict[tuple[str, str], list[float]] = field(default_factory=lists)  # ms
    points: dict[tuple[float, str], list[Point]] = field(default_factory=lists)
    cosines: dict[str, float] = field(default_factory=dict)  # smallest of each system
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # and why
    reference: dict[str, Vectors] = field(default_factory=dict)
    batch_sizes: dict[str, dict[str, int]] = field(default_factory=dict)  # of each system and workload
    base_rate: float = 0.0  # items/s of sentence-transformers, which online rates are multiples of

    def calibrate(self) -> None:
        """Make the reference, and find sentence-transformers' best settings, which the servers of it get, too.

        Raises
        ------
        SystemFailedError, InstallError
            There is no reference, without which nothing can be compared.
        """
        speed: dict[str, dict[str, float]] = {}
        for name in reversed(LIBRARY):
            with SYSTEMS[name](self.setup) as system:
                assert isinstance(system, SentenceTransformers)
                self.batch_sizes[name], speed[name] = {}, {}
                for workload, items in self.workloads.items():
                    size, speed[name][workload] = _best_batch_size(system, items)
                    self.batch_sizes[name][workload] = system.batch_size = size
                    if name == REFERENCE:
                        self.reference[workload] = system.embed(items)
        decisive = ONLINE if ONLINE in self.workloads else next(iter(self.workloads))
        best = max(LIBRARY, key=lambda name: speed[name][decisive])
        self.base_rate = speed[best][decisive]
        size = max(self.batch_sizes[best].values())
        self.setup = replace(self.setup, dtype=best.split()[-1], batch_size=size)
        say(f"{decisive}: {best} does {self.base_rate:.1f}/s; its servers get {self.setup.dtype}, batches of {size}")

    def round(self) -> None:
        """Measure every system once; one that fails is left out from then on."""
        for name in self.names:
            if name in self.failed:
                continue
            try:
                with self._started(name) as system:
                    self._measure(system)
            except (SystemFailedError, InstallError, OSError) as error:
                self.failed[name] = str(error)
                say(f"{name}: left out: {error}")

    @contextmanager
    def _started(self, name: str) -> Iterator[System]:
        with SYSTEMS[name](self.setup) as system:
            self.settings[name] = system.settings | {"batch_size of a workload": self.batch_sizes.get(name)}
            yield system

    def _measure(self, system: System) -> None:
        able = {workload: items for workload, items in self.workloads.items() if system.can(items)}
        self._warm_and_check(system, able)
        for workload, items in able.items():
            self._choose_batch_size(system, workload)
            self.rates[workload, system.name].append(rate(system.embed, items))
        for workload in SINGLE:
            if workload in able:
                self.latencies[workload, system.name].append(latency_ms(system.embed, able[workload][:NUM_SINGLE]))
        if system.is_served and self.seconds and ONLINE in able:
            self._online(system, able[ONLINE])
        done = {workload: round(self.rates[workload, system.name][-1], 2) for workload in able}
        say(f"{system.name}: items/s {done}")

    def _warm_and_check(self, system: System, workloads: dict[str, list[Item]]) -> None:
        """Embed something of each workload; in the first round all of it, to be compared with the reference."""
        is_known = system.name in self.cosines
        cosines = []
        for workload, items in workloads.items():
            system.prepare(items)
            self._choose_batch_size(system, workload)
            vectors = system.embed(items[:1] if is_known else items)
            cosines.append((vectors * self.reference[workload][: len(vectors)]).sum(axis=1).min())
        smallest = float(np.min(cosines))
        self.cosines.setdefault(system.name, smallest)
        if not smallest >= MIN_COSINE:  # written so that NaN fails, too
            raise SystemFailedError(f"a vector has the cosine {smallest:.4f} to the reference, below {MIN_COSINE}")

    def _choose_batch_size(self, system: System, workload: str) -> None:
        if isinstance(system, SentenceTransformers):
            system.batch_size = self.batch_sizes[system.name][workload]

    def _online(self, system: System, items: list[Item]) -> None:
        for multiple in RATES:
            offered = multiple * self.base_rate
            point = online(system.embed, items, poisson_arrivals(offered, self.seconds, seed=int(100 * multiple)))
            self.points[multiple, system.name].append(point)
            if not point.kept_up:
                break

    def rows(self) -> dict[str, float]:
        """Return medians, and the ratios of them: what is faster than its base has more than 1."""
        rows: dict[str, float] = {}
        for name, cosine in self.cosines.items():
            rows[f"{name}: cosine to {REFERENCE}, smallest"] = cosine
        for workload in self.workloads:
            speed = {name: statistics.median(taken) for (what, name), taken in self.rates.items() if what == workload}
            rows |= {f"{workload}: {name}, items/s": value for name, value in speed.items()}
            rows |= _ratios(workload, speed, OURS, LIBRARY, "sentence-transformers")
            rows |= _ratios(workload, speed, OURS, [peer.name for peer in SERVED_PEERS], "best server of the others")
            if OURS in speed and IN_PROCESS in speed:
                rows[f"{workload}: served / in process"] = speed[OURS] / speed[IN_PROCESS]
        for workload in SINGLE:
            single = {
                name: statistics.median(taken) for (what, name), taken in self.latencies.items() if what == workload
            }
            rows |= {f"{workload}, one by one: {name}, ms": value for name, value in single.items()}
            per_ms = {name: 1 / value for name, value in single.items()}
            rows |= _ratios(f"{workload}, one by one", per_ms, OURS, LIBRARY, "sentence-transformers")
        return rows | self._online_rows()

    def _online_rows(self) -> dict[str, float]:
        rows: dict[str, float] = {}
        sustained: dict[str, float] = {}
        for (multiple, name), points in self.points.items():
            what = f"online, {multiple * self.base_rate:.1f} {ONLINE}/s offered: {name}"
            for column in ("throughput", "p50_ms", "p95_ms", "p99_ms"):
                value = statistics.median(getattr(point, column) for point in points)
                rows[f"{what}, {column.replace('_', ' ').replace('throughput', f'{ONLINE}/s')}"] = value
            # counted at once if most rounds kept up
            good = [point for point in points if point.kept_up and point.p99_ms <= MAX_P99_MS]
            if 2 * len(good) > len(points):
                best = statistics.median(point.throughput for point in good)
                sustained[name] = max(sustained.get(name, 0.0), best)
        what = f"online, p99 below {MAX_P99_MS / 1e3:g} s"
        rows |= {f"{what}: {name}, {ONLINE}/s": value for name, value in sustained.items()}
        return rows | _ratios(what, sustained, OURS, [peer.name for peer in SERVED_PEERS], "best server of the others")

    def lines(self) -> dict[str, list[tuple[float, float]]]:
        """Return throughput and p99, in ms, of each system in the order of the rates that were offered."""
        found: dict[str, list[tuple[float, float]]] = {}
        for (_, name), points in sorted(self.points.items()):
            middle = [
                statistics.median(getattr(point, column) for point in points) for column in ("throughput", "p99_ms")
            ]
            found.setdefault(name, []).append((middle[0], middle[1]))
        return found


def say(what: str) -> None:
    """Tell how far the run is."""
    print(what, file=sys.stderr, flush=True)


def _best_batch_size(system: SentenceTransformers, items: list[Item]) -> tuple[int, float]:
    """Return the fastest batch size and its rate; larger ones are tried until they do not pay."""
    best, best_rate = BATCH_SIZES[0], 0.0
    for size in BATCH_SIZES:
        system.batch_size = size
        found = rate(system.embed, items)
        if found < best_rate:
            break
        best, best_rate = size, found
        if size >= len(items):
            break
    return best, best_rate


def _ratios(what: str, values: dict[str, float], ours: str, others: Sequence[str], label: str) -> dict[str, float]:
    """Return our value over the best of the others, if both are there."""
    known = [values[name] for name in others if name in values]
    return {f"{what}: {ours} / {label}": values[ours] / max(known)} if ours in values and known else {}
