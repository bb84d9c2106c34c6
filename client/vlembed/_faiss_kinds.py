"""The kinds of FAISS index: how each holds float32 vectors (n, d) by position, searches, replaces and removes them.

Each has `index`, FAISS's own; `add`; `search`, which returns k rows of a mask to each query, of at least as many; and
if FAISS can, `replace`, `cut`, which leaves the first rows alone, and `remove`, which moves vectors from the end into
the gaps and cuts the end off. Knows no ids and no metadata, and no locks. FAISS computes everything; cosine is the
inner product of unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._extras import require
from ._fork import call_after_fork
from ._rows import Mask, Positions
from ._store import HNSW_OPTIONS, Vectors

Hits: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # scores and positions, (q, k)

KINDS: dict[str, dict[str, int]] = {  # with their options
    "flat": {},
    "hnsw": HNSW_OPTIONS,
    "ivfpq": {"train_size": 10_000, "nprobe": 32, "code_bytes": 0},  # code_bytes is set by the dimensions
    "int8": {"train_size": 1_000, "oversampling": 4},
    "binary": {"oversampling": 16},
}
VECTORS_PER_LIST = 40  # of the ones that train; FAISS warns below 39
CODE_ITERATIONS = 10  # of k-means; FAISS's 25 gain nothing: recall@10 was 0.48 after 4 as after 25 (10^4 x 512)
RANGE_MARGIN = 0.1  # that int8 adds at both ends of the range of each dimension, for vectors to come
MIN_CANDIDATES = 64  # of a first pass, however small k is
EXACT_SHARE = 0.1  # of the rows: a filter that leaves fewer is answered by comparing them all


def faiss() -> Any:
    """Return FAISS; in every child that is forked from now on it has one thread."""
    module = require("faiss", "index")
    call_after_fork(_use_one_thread)
    return module


def _use_one_thread() -> None:
    """Keep OpenMP from waiting, for ever, for the threads that it had in the parent."""
    faiss().omp_set_num_threads(1)


class Exhaustive:
    """`flat`, and behind a first pass over the codes of `coarse`: `int8` and `binary`."""

    def __init__(self, index: Any, options: Mapping[str, int]) -> None:
        self.index = index
        self._flat, self._coarse = index, None
        if isinstance(index, faiss().IndexRefine):
            self._flat, self._coarse = map(faiss().downcast_index, (index.refine_index, index.base_index))
        self._oversampling = options.get("oversampling", 1)

    @property
    def is_exact(self) -> bool:
        return self._coarse is None

    @property
    def _parts(self) -> list[Any]:
        return [part for part in (self._coarse, self._flat) if part is not None]

    @property
    def vectors(self) -> Vectors:
        """A view of all rows, valid until the next change."""
        return _codes(self._flat).view(np.float32)

    def add(self, vectors: Vectors) -> None:
        self.index.add(vectors)

    def replace(self, positions: Positions, vectors: Vectors) -> None:
        for part in self._parts:
            _codes(part)[positions] = part.sa_encode(vectors)

    def remove(self, positions: Positions, movers: Positions) -> None:
        for part in self._parts:
            codes = _codes(part)
            codes[positions[: len(movers)]] = codes[movers]
        self.cut(self._flat.ntotal - len(positions))

    def cut(self, num_rows: int) -> None:
        for part in self._parts:
            part.remove_ids(faiss().IDSelectorRange(num_rows, part.ntotal))
        self.index.ntotal = num_rows

    def search(self, queries: Vectors, k: int, mask: Mask | None) -> Hits:
        is_exact = self._coarse is None
        if mask is not None:  # FAISS compares signs of all rows or of none
            is_exact |= isinstance(self._coarse, faiss().IndexLSH) or mask.mean() < EXACT_SHARE
        if is_exact:
            return _search(self._flat, queries, k, _parameters(faiss().SearchParameters, mask))
        candidates = min(self._flat.ntotal, max(k * self._oversampling, MIN_CANDIDATES))
        first_pass = {} if mask is None else {"base_index_params": _parameters(faiss().SearchParameters, mask)}
        factor = (candidates + 0.5) / k  # FAISS rounds k times it down
        parameters = faiss().IndexRefineSearchParameters(k_factor=factor, **first_pass)
        return _search(self.index, queries, k, parameters)


class Hnsw:
    """`hnsw`: a graph, from which FAISS removes nothing."""

    def __init__(self, index: Any, options: Mapping[str, int]) -> None:
        self.index, self._ef_search = index, options["ef_search"]
        self._flat = faiss().downcast_index(index.storage)

    def add(self, vectors: Vectors) -> None:
        self.index.add(vectors)

    @property
    def vectors(self) -> Vectors:
        """A view of all rows, valid until the next change."""
        return _codes(self._flat).view(np.float32)

    def search(self, queries: Vectors, k: int, mask: Mask | None) -> Hits:
        def compare_all(chosen: Vectors) -> Hits:
            return _search(self._flat, chosen, k, _parameters(faiss().SearchParameters, mask))

        share = 1.0 if mask is None else float(mask.mean())
        if share < EXACT_SHARE:
            return compare_all(queries)
        width = math.ceil(max(self._ef_search, k) / share)  # of those visited, the share counts
        parameters = _parameters(faiss().SearchParametersHNSW, mask, efSearch=width)
        hits = _search(self.index, queries, k, parameters)
        return _complete(hits, lambda short: compare_all(queries[short]))


class IvfPq:
    """`ivfpq`: lists of nearby vectors, as codes alone."""

    def __init__(self, index: Any, options: Mapping[str, int]) -> None:
        self.index, self._nprobe = index, options["nprobe"]

    def add(self, vectors: Vectors) -> None:
        self.index.add(vectors)

    def replace(self, positions: Positions, vectors: Vectors) -> None:
        self.index.remove_ids(positions)
        self.index.add_with_ids(vectors, positions)

    def cut(self, num_rows: int) -> None:
        self.index.remove_ids(faiss().IDSelectorRange(num_rows, np.iinfo(np.int64).max))

    def remove(self, positions: Positions, movers: Positions) -> None:
        num_rows = self.index.ntotal
        self.index.remove_ids(positions)
        moved = np.arange(num_rows)
        moved[movers] = positions[: len(movers)]
        lists = self.index.invlists
        for number in range(self.index.nlist):
            if size := lists.list_size(number):
                labels = faiss().rev_swig_ptr(lists.get_ids(number), size)
                labels[:] = moved[labels]

    def search(self, queries: Vectors, k: int, mask: Mask | None) -> Hits:
        def probe(chosen: Vectors, nprobe: int) -> Hits:
            return _search(self.index, chosen, k, _parameters(faiss().SearchParametersIVF, mask, nprobe=nprobe))

        return _complete(probe(queries, self._nprobe), lambda short: probe(queries[short], self.index.nlist))


def default_code_bytes(dimensions: int) -> int:
    """Return the bytes of an `ivfpq` code: one for 4 dimensions, as near as they can be divided."""
    return next(size for size in range(max(1, dimensions // 4), 0, -1) if dimensions % size == 0)


def empty(kind: str, dimensions: int, options: Mapping[str, int]) -> Exhaustive | Hnsw:
    """Return an index without rows; one of a kind that has yet to be trained searches exhaustively until then."""
    if kind == "hnsw":
        graph = faiss().IndexHNSWFlat(dimensions, options["m"], faiss().METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = options["ef_construction"]
        return Hnsw(graph, options)
    index = faiss().IndexFlatIP(dimensions)
    if kind == "binary":
        signs = faiss().IndexLSH(dimensions, dimensions, False, False)  # neither rotation nor thresholds
        signs.metric_type = index.metric_type  # as both passes need it; the first one compares by Hamming all the same
        index = faiss().IndexRefine(signs, index)
    return Exhaustive(index, options)


def train(kind: str, rows: Exhaustive, options: Mapping[str, int]) -> Exhaustive | IvfPq:
    """Return the trained index of an `int8` or `ivfpq` one that has gathered its rows."""
    vectors = rows.vectors
    dimensions, metric = vectors.shape[1], faiss().METRIC_INNER_PRODUCT
    if kind == "int8":
        coarse = faiss().IndexScalarQuantizer(dimensions, faiss().ScalarQuantizer.QT_8bit, metric)
        coarse.sq.rangestat_arg = RANGE_MARGIN
        coarse.train(vectors)
        coarse.add(vectors)
        return Exhaustive(faiss().IndexRefine(coarse, rows.index), options)
    num_lists = max(1, options["train_size"] // VECTORS_PER_LIST)
    lists = faiss().IndexIVFPQ(faiss().IndexFlatIP(dimensions), dimensions, num_lists, options["code_bytes"], 8, metric)
    lists.cp.min_points_per_centroid = lists.pq.cp.min_points_per_centroid = 1  # fewer are the caller's choice
    lists.pq.cp.niter = CODE_ITERATIONS
    lists.train(vectors)
    lists.add(vectors)
    return IvfPq(lists, options)


def wrap(index: Any, options: Mapping[str, int]) -> Exhaustive | Hnsw | IvfPq:
    """Return the kind of an index that FAISS read."""
    if isinstance(index, faiss().IndexHNSW):
        return Hnsw(index, options)
    if isinstance(index, faiss().IndexIVF):
        return IvfPq(index, options)
    return Exhaustive(index, options)


def _codes(part: Any) -> npt.NDArray[np.uint8]:
    """Return a view of the bytes of the rows, (n, bytes of a row)."""
    return np.asarray(faiss().rev_swig_ptr(part.codes.data(), part.codes.size()).reshape(part.ntotal, part.code_size))


def _parameters(of_kind: Callable[..., Any], mask: Mask | None, **options: int) -> Any:
    """Return search parameters that leave the rows of the mask alone; None if there is nothing to tell."""
    if mask is None:
        return of_kind(**options) if options else None
    return of_kind(sel=faiss().IDSelectorBitmap(np.packbits(mask, bitorder="little")), **options)


def _search(index: Any, queries: Vectors, k: int, parameters: Any) -> Hits:
    scores, positions = index.search(queries, k, params=parameters)
    return scores, positions


def _complete(hits: Hits, search_again: Callable[[Mask], Hits]) -> Hits:
    """Search again, with more effort, for the queries that found too few rows."""
    scores, positions = hits
    short: Mask = (positions < 0).any(axis=1)
    if short.any():
        scores[short], positions[short] = search_again(short)
    return scores, positions
