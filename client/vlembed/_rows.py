"""The ids and the metadata of the rows of a FAISS index, which knows positions only.

A row that was removed where positions have to stay is dead: it has no id.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from ._filters import Condition, type_of
from ._metadata import decode_metadata

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Snapshot:
    """The rows by position as they were when it was taken, perhaps with others behind them."""

    ids: list[str | None]
    metadata: list[str]


class Rows:
    """Rows by position; several threads may read, one alone may write."""

    def __init__(self, ids: Sequence[str | None] = (), metadata: Sequence[str] = ()) -> None:
        self.ids: list[str | None] = []
        self.metadata: list[str] = []
        self.position: dict[str, int] = {}
        self._is_alive = bytearray()
        self._columns: dict[str, _Column] = {}
        self._snapshot: Callable[[], Snapshot | None] = _no_snapshot
        self._lock = threading.Lock()  # of the columns and the snapshot, which readers make
        self.append(ids, metadata)

    def after_fork(self) -> None:
        """Forget the lock, and the columns that a thread of the parent may have been reading."""
        self._lock = threading.Lock()
        self._columns = {}

    def __len__(self) -> int:
        return len(self.position)

    @property
    def num_dead(self) -> int:
        return len(self.ids) - len(self.position)

    def positions(self, ids: Iterable[str]) -> Positions:
        """Return where those of the ids are that are here, in ascending order."""
        return np.array(sorted(self.position[own] for own in set(ids) if own in self.position), np.int64)

    def append(self, ids: Sequence[str | None], metadata: Sequence[str]) -> None:
        start = len(self.ids)
        self.ids.extend(ids)
        self.metadata.extend(metadata)
        self.position.update((own, start + index) for index, own in enumerate(ids) if own is not None)
        self._is_alive.extend(own is not None for own in ids)

    def snapshot(self) -> Snapshot:
        """Return the rows, which whoever has them may read whatever happens to these ones."""
        with self._lock:
            snapshot = self._snapshot()
            if snapshot is None:
                snapshot = Snapshot(self.ids, self.metadata)
                self._snapshot = weakref.ref(snapshot)
            return snapshot

    def replace(self, positions: Positions, metadata: Sequence[str]) -> None:
        self._before_change()
        for position, text in zip(positions.tolist(), metadata, strict=True):
            self.metadata[position] = text

    def remove(self, positions: Positions, movers: Positions) -> None:
        """Remove rows and close the gaps: the movers, from the end, fill those before them in order."""
        self._before_change()
        length = len(self.ids) - len(positions)
        for position in positions.tolist():
            del self.position[self.ids[position]]
        for hole, mover in zip(positions.tolist(), movers.tolist(), strict=False):
            self.ids[hole], self.metadata[hole] = self.ids[mover], self.metadata[mover]
            self.position[self.ids[hole]] = hole
        del self.ids[length:], self.metadata[length:], self._is_alive[length:]

    def kill(self, positions: Positions) -> None:
        """Remove rows and leave their positions empty; an id that has another position by now keeps that."""
        self._before_change()
        for position in positions.tolist():
            if self.position[self.ids[position]] == position:
                del self.position[self.ids[position]]
            self.ids[position], self.metadata[position], self._is_alive[position] = None, "", False

    def without_dead(self) -> Rows:
        alive = self.living()
        return Rows(list(compress(self.ids, alive)), list(compress(self.metadata, alive)))

    def living(self) -> Mask:
        """Return which rows are not dead."""
        return np.array(self._is_alive).astype(np.bool_)

    def mask(self, conditions: Sequence[Condition]) -> Mask | None:
        """Return which rows meet all conditions and are not dead, None for all."""
        masks = [] if self.num_dead == 0 else [self.living()]
        with self._lock:
            for condition in conditions:
                column = self._columns.setdefault(condition.field, _Column(condition.field))
                column.extend(self.metadata)
                masks.append(column.mask(condition))
        return np.logical_and.reduce(masks) if masks else None

    def _before_change(self) -> None:
        """Leave the lists to a snapshot that somebody has, and forget what was read from the metadata."""
        if self._snapshot() is not None:
            self.ids, self.metadata = list(self.ids), list(self.metadata)
            self._snapshot = _no_snapshot
        self._columns.clear()


def _no_snapshot() -> None:
    return None


class _Column:
    """A field of every row as codes of its distinct values, so that a condition is checked once for each of these."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._codes = array("i")
        self._code_of: dict[tuple[str, Any], int] = {}

    def extend(self, metadata: Sequence[str]) -> None:
        """Read the rows that were appended since."""
        for index in range(len(self._codes), len(metadata)):
            value = decode_metadata(metadata[index]).get(self._field)
            if (of_type := type_of(value)) == "other":
                self._codes.append(-1)
            else:
                self._codes.append(self._code_of.setdefault((of_type, value), len(self._code_of)))

    def mask(self, condition: Condition) -> Mask:
        is_met = [condition.is_met(value) for _, value in self._code_of]
        return np.array([*is_met, False])[np.frombuffer(self._codes, np.intc)]  # the last one is that of -1
