"""A stream of items: packs in flight, and what becomes of each item, in the order of the items.

The caller's thread reads, prepares and groups the items and yields; the stream's own threads send. What is held is
bounded: the items that wait to be grouped or answered, and the rows that wait for an earlier one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ._exceptions import InvalidInputError, OverloadedError
from ._fork import call_after_fork
from ._items import BadItemError, ItemLike, PreparedItem
from ._limit import AdaptiveLimit
from ._packing import MAX_PACK_BYTES, Cost, CostedItem, Pack, cost_of, deal
from ._request import Call, Outcome
from ._retry import RetryTransport

SENT_PACKS = 2  # for each request in flight: one that is, and one that is ready to be
HELD_PACKS = 4  # for each request in flight: those, and as many to group by cost
MAX_HELD_BYTES = 4 * MAX_PACK_BYTES
PATIENCE_S = 300.0  # how long a server may be overloaded, where no total_timeout_s says it


@dataclass(frozen=True)
class Plan:
    """How a stream treats its items."""

    call: Call
    transport: RetryTransport  # that of `call`; retries all but overloads, which the stream answers by sending less
    prepare: Callable[[ItemLike], PreparedItem]  # raises BadItemError
    bounds: Mapping[str, int]
    max_pixels: int | None
    concurrency: int
    total_timeout_s: float | None  # of a pack
    ends_at_error: bool  # what follows a bad item is not wanted


class Stream:
    """What becomes of the items of an iterable; `outcomes` is iterated over once."""

    def __init__(self, plan: Plan, items: Iterable[ItemLike]) -> None:
        self._plan = plan
        self._source = iter(items)
        self._limit = AdaptiveLimit(plan.concurrency, plan.transport.retry.backoff_s)
        self._num_read = 0
        self._num_yielded = 0
        self._waiting: dict[int, CostedItem] = {}
        self._ready: deque[dict[int, CostedItem]] = deque()  # packs
        self._in_flight: dict[Future[list[Outcome]], Cost] = {}
        self._waiting_cost = Cost()
        self._held_cost = Cost()  # of what waits, is ready and is in flight
        self._done: dict[int, Outcome] = {}
        self._is_read = False
        self._source_error: Exception | None = None
        self._failure: BaseException | None = None  # of a request
        self._is_inherited = False  # from the process that forked this one and has the threads
        call_after_fork(self._after_fork)

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Yield what becomes of each item in order; raise an error of the source or of a request in its place."""
        with ThreadPoolExecutor(self._plan.concurrency, thread_name_prefix="vlembed") as pool:
            try:
                while True:
                    self._refuse_inherited()
                    self._collect()
                    self._dispatch(pool)
                    if self._num_yielded in self._done:
                        outcome = self._done.pop(self._num_yielded)
                        self._num_yielded += 1
                        yield outcome
                    elif self._in_flight:
                        wait(self._in_flight, return_when=FIRST_COMPLETED)
                    else:
                        break
            finally:
                self.stop()
        if error := self._failure or self._source_error:
            raise error

    def stop(self) -> None:
        """Send nothing more; requests in flight end by themselves, but are not sent again."""
        if not self._is_inherited:
            self._limit.stop()
            self._plan.transport.stop()

    def _after_fork(self) -> None:
        self._is_inherited = True

    def _refuse_inherited(self) -> None:
        if self._is_inherited:
            raise InvalidInputError(
                "this stream was begun before the process was forked, and only the parent can go on with it. Call "
                "embed_many in the child."
            )

    def _collect(self) -> None:
        for future in [future for future in self._in_flight if future.done()]:
            self._held_cost -= self._in_flight.pop(future)
            if error := future.exception():
                self._failure = self._failure or error
                self.stop()  # else whatever is in flight, and then what is ready, would use up its own retries
            else:
                self._done |= {outcome.index: outcome for outcome in future.result()}

    def _dispatch(self, pool: ThreadPoolExecutor) -> None:
        while self._failure is None and len(self._in_flight) < SENT_PACKS * self._plan.concurrency:
            self._read()
            if not self._ready and not self._group():
                break
            pack = self._ready.popleft()
            items = {index: costed.item for index, costed in pack.items()}
            self._in_flight[pool.submit(self._deliver, items)] = cost_of_pack(pack)

    def _group(self) -> bool:
        """Make packs of what waits, one for each request in flight, if that is enough to fill them or all there is."""
        bounds, concurrency = self._plan.bounds, self._plan.concurrency
        is_due = self._is_read or (not self._in_flight and self._num_yielded in self._waiting)
        if is_due or self._waiting_cost.packs(bounds) >= concurrency:
            self._ready.extend(deal(self._waiting, bounds, concurrency))
            self._waiting_cost -= sum(map(cost_of_pack, self._ready), Cost())
        return bool(self._ready)

    def _read(self) -> None:
        """Read the source as far as there is room."""
        plan, most = self._plan, HELD_PACKS * self._plan.concurrency
        while (
            not self._is_read
            and self._num_read - self._num_yielded < most * plan.bounds["max_items"]
            and self._held_cost.packs(plan.bounds) < most
            and self._held_cost.size_bytes < MAX_HELD_BYTES
        ):
            try:
                item = next(self._source)
            except Exception as error:
                self._is_read = True
                self._source_error = None if isinstance(error, StopIteration) else error
                break
            self._refuse_inherited()  # the source may have forked
            index = self._num_read
            self._num_read += 1
            try:
                prepared = plan.prepare(item)
            except BadItemError as error:
                self._done[index] = error.at(index)
                self._is_read = plan.ends_at_error
            else:
                cost = cost_of(prepared, plan.bounds, plan.max_pixels)
                self._waiting[index] = CostedItem(prepared, cost)
                self._waiting_cost += cost
                self._held_cost += cost

    def _deliver(self, pack: Pack) -> list[Outcome]:
        """Return what becomes of every item of a pack: if some are bad, the others are sent again without them."""
        outcomes: list[Outcome] = []
        while pack:
            outcomes += self._send(pack)
            known = {outcome.index for outcome in outcomes}
            pack = {index: item for index, item in pack.items() if index not in known}
        return outcomes

    def _send(self, pack: Pack) -> list[Outcome]:
        """Send a pack, and after an overload again, until there is no patience left."""
        total_timeout_s = self._plan.total_timeout_s
        began_at = math.inf
        while True:
            try:
                with self._limit.slot():
                    began_at = min(began_at, time.monotonic())
                    return self._plan.call.send(pack, began_at + (total_timeout_s or math.inf))
            except OverloadedError:
                if time.monotonic() - began_at > (total_timeout_s or PATIENCE_S):
                    raise


def cost_of_pack(pack: Mapping[int, CostedItem]) -> Cost:
    """Return what the items of a pack cost together."""
    return sum((costed.cost for costed in pack.values()), Cost())
