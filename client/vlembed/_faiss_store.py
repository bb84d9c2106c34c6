"""The store of an index in this process: FAISS for the vectors, `Rows` for the rest, and one file.

Searches run side by side; a change waits for them, and they for it. Ctrl-C waits for the end of a change, and vectors
that FAISS could not add are taken back, so that vectors and rows stay in step.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import _index_file
from ._exceptions import InvalidInputError
from ._faiss_kinds import KINDS, Exhaustive, Hnsw, IvfPq, default_code_bytes, empty, faiss, train, wrap
from ._filters import Condition
from ._locks import ReadWriteLock, undisturbed
from ._metadata import decode_metadata
from ._rows import Positions, Rows
from ._similarity import blocks
from ._store import IndexInfo, Match, Matches, Vectors, choose

MIN_TRAIN_SIZE = 256  # an ivfpq code has 256 values
BLOCK_ROWS = 8192
MAX_DEAD_SHARE = 0.25  # of an hnsw index's rows, before it is built again without them


def complete(info: IndexInfo) -> IndexInfo:
    """Check the kind and the options that were asked for, and add those that were not.

    Raises
    ------
    InvalidInputError
        Naming what is wrong.
    """
    options = choose(info.kind, info.options, KINDS)
    if info.kind == "ivfpq":
        options["code_bytes"] = options["code_bytes"] or default_code_bytes(info.dimensions)
        if info.dimensions % options["code_bytes"]:
            raise InvalidInputError(
                f"code_bytes is {options['code_bytes']}, which does not divide the {info.dimensions} dimensions. "
                f"Pass a divisor, or leave it out for {default_code_bytes(info.dimensions)}."
            )
        if options["train_size"] < MIN_TRAIN_SIZE:
            raise InvalidInputError(
                f"train_size is {options['train_size']}; an ivfpq index learns from {MIN_TRAIN_SIZE} vectors or more."
            )
    return replace(info, options=options)


class FaissStore:
    """Rows in memory; those of a file that was opened stay there until the first change, if the kind allows it."""

    def __init__(self, info: IndexInfo) -> None:
        self._info = complete(info)
        self._rows = Rows()
        self._vectors: Exhaustive | Hnsw | IvfPq = empty(info.kind, info.dimensions, self._info.options)
        self._lock = ReadWriteLock()
        self._mapped: IO[bytes] | None = None  # the file that the vectors are in

    @classmethod
    def load(cls, path: Path) -> FaissStore:
        """Open a file that `save` wrote.

        Raises
        ------
        InvalidInputError
            It cannot be read, or is not whole, or of another or a newer program.
        """
        try:
            file = path.open("rb")
        except OSError as error:
            raise InvalidInputError(
                f"{str(path)!r} cannot be read ({error.strerror}). Pass an index's file."
            ) from error
        try:
            content = _index_file.read(path, file)
            store = cls(content.info)
            store._rows = Rows(content.ids, content.metadata)
            if content.info.kind in ("flat", "int8", "binary"):  # FAISS maps what is a plain table
                index = faiss().read_index(str(path), faiss().IO_FLAG_MMAP_IFC)
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    raise InvalidInputError(f"{str(path)!r} was replaced while it was read. Load it again.")
                store._mapped = file
                weakref.finalize(store, file.close)
            else:
                with file:
                    index = _read(file)
            if (index.ntotal, index.d) != (len(content.ids), content.info.dimensions):
                raise InvalidInputError(
                    f"{str(path)!r} has {len(content.ids)} ids of {content.info.dimensions} dimensions, but "
                    f"{index.ntotal} vectors of {index.d}: it was not written by vlembed. Build the index again."
                )
            store._vectors = wrap(index, store._info.options)
        except RuntimeError as error:
            file.close()
            raise InvalidInputError(
                f"{str(path)!r} is whole, but FAISS {faiss().__version__} cannot read it ({error}). Upgrade FAISS."
            ) from error
        except BaseException:
            file.close()
            raise
        return store

    @property
    def info(self) -> IndexInfo:
        return self._info

    def __len__(self) -> int:
        return len(self._rows)

    def held(self, ids: Sequence[str]) -> set[str]:
        with self._lock.reading():
            return self._rows.position.keys() & ids

    def check(self, ids: Sequence[str], metadata: Sequence[str]) -> None:
        """Accept every row: memory alone limits them."""

    def add(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        with undisturbed(), self._lock.writing():
            self._append(ids, vectors, metadata)

    def upsert(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        with undisturbed(), self._lock.writing():
            here = self._rows.positions(ids)
            if isinstance(self._vectors, Hnsw):
                self._append(ids, vectors, metadata)
                self._kill(self._vectors, here)
                return
            given = {own: index for index, own in enumerate(ids)}
            self._own()
            old = [given[self._rows.ids[position]] for position in here.tolist()]
            self._vectors.replace(here, vectors[old])
            self._rows.replace(here, [metadata[index] for index in old])
            new = sorted(set(range(len(ids))) - set(old))
            self._append([ids[index] for index in new], vectors[new], [metadata[index] for index in new])

    def delete(self, ids: Iterable[str]) -> int:
        with undisturbed(), self._lock.writing():
            positions = self._rows.positions(ids)
            if isinstance(self._vectors, Hnsw):
                self._kill(self._vectors, positions)
            elif len(positions):
                self._own()
                tail = np.arange(len(self._rows) - len(positions), len(self._rows))
                movers = np.setdiff1d(tail, positions)
                self._vectors.remove(positions, movers)
                self._rows.remove(positions, movers)
            return len(positions)

    def search(self, vectors: Vectors, k: int, conditions: Sequence[Condition]) -> Matches:
        with self._lock.reading():
            mask = self._rows.mask(conditions) if conditions or self._rows.num_dead else None
            k = min(k, len(self._rows) if mask is None else int(mask.sum()))
            if k == 0:
                return Matches(range(len(vectors)), lambda _: [])
            scores, positions = self._vectors.search(vectors, k, mask)
            rows = self._rows.snapshot()

        def read(query: int) -> list[Match]:
            return [
                Match(rows.ids[position], score, decode_metadata(rows.metadata[position]))
                for position, score in zip(positions[query].tolist(), scores[query].tolist(), strict=True)
            ]

        return Matches(range(len(vectors)), read)

    def save(self, path: Path) -> None:
        with self._lock.reading():
            content = _index_file.Content(self._info, self._rows.ids, self._rows.metadata)
            index = self._vectors.index
            _index_file.write(path, content, lambda take: faiss().write_index(index, faiss().PyCallbackIOWriter(take)))

    def close(self) -> None:
        """Do nothing: no connection is open, and the file of mapped vectors closes with the last use of them."""

    def after_fork(self, *, is_changing: bool) -> bool:
        self._lock = ReadWriteLock()
        self._rows.after_fork()
        return not is_changing

    def _append(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        if not len(ids):
            return
        self._own()
        try:
            self._vectors.add(vectors)
        except BaseException:
            self._take_back()
            raise
        self._rows.append(ids, metadata)
        options = self._info.options
        is_enough = len(self._rows) >= options.get("train_size", math.inf)
        if is_enough and isinstance(self._vectors, Exhaustive) and self._vectors.is_exact:
            self._vectors = train(self._info.kind, self._vectors, options)

    def _take_back(self) -> None:
        """Remove the vectors that have no rows; of a graph, have dead rows for them."""
        num_rows = len(self._rows.ids)
        if isinstance(self._vectors, Hnsw):
            num_missing = self._vectors.index.ntotal - num_rows
            self._rows.append([None] * num_missing, [""] * num_missing)
        else:
            self._vectors.cut(num_rows)

    def _kill(self, graph: Hnsw, positions: Positions) -> None:
        """Let positions of a graph go, and build it again once too many are gone."""
        self._rows.kill(positions)
        if self._rows.num_dead <= MAX_DEAD_SHARE * len(self._rows.ids):
            return
        living = np.flatnonzero(self._rows.living())
        vectors = empty(self._info.kind, self._info.dimensions, self._info.options)
        for rows in blocks(len(living), BLOCK_ROWS):
            vectors.add(graph.vectors[living[rows]])
        self._vectors, self._rows = vectors, self._rows.without_dead()

    def _own(self) -> None:
        """Read vectors into memory that are still in the file, before they are changed."""
        if self._mapped is not None:
            self._vectors = wrap(_read(self._mapped), self._info.options)
            self._mapped.close()
            self._mapped = None


def _read(file: IO[bytes]) -> Any:
    """Read FAISS's part by offsets, because a forked process shares the position of the file."""
    offset = 0

    def read(size: int) -> bytes:
        nonlocal offset
        data = os.pread(file.fileno(), size, offset)
        offset += len(data)
        return data

    return faiss().read_index(faiss().PyCallbackIOReader(read))
