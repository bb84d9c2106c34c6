"""Similarity of vectors, higher is more similar; numpy only, and in blocks, so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ._checks import flag, one_of, whole_number
from ._exceptions import InvalidInputError
from ._result import Embeddings

Metric: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]
Array: TypeAlias = npt.NDArray[Any]

NORM_ORDER = {"euclidean": 2, "manhattan": 1}
BLOCK_ELEMENTS = 1 << 22  # of a temporary array: 16 MiB in float32
CACHE_LINE_BYTES = 64
SAFE_SQUARES = (1e-20, 1e20)  # of a float32 vector, whose norm is then as good as that by float64


def similarity(
    a: Embeddings | npt.ArrayLike, b: Embeddings | npt.ArrayLike, *, metric: Metric = "cosine", pairwise: bool = False
) -> Array:
    """Compare vectors: all of `a` with all of `b`, or row by row.

    Parameters
    ----------
    a, b
        Vectors, shape (n, d) and (m, d); (d,) is one vector.
    metric
        "cosine", "dot", or a negative distance, "euclidean" or "manhattan": more similar is always higher.
    pairwise
        Compare row i of `a` with row i of `b` only.

    Returns
    -------
    numpy.ndarray
        Floats (n, m), or (n,) if pairwise.

    Raises
    ------
    InvalidInputError
        Unknown metric; vectors that do not fit, are not finite, or are zero for the cosine; or two `Embeddings` of
        different models.
    """
    left, right = _pair(("a", a), ("b", b), metric)
    pairwise = flag("pairwise", pairwise)
    if pairwise and len(left) != len(right):
        raise InvalidInputError(
            f"pairwise compares row by row, but a has {len(left)} rows and b has {len(right)}. Pass as many of both."
        )
    if pairwise:
        out = np.empty(len(left), np.result_type(left.dtype, right.dtype))
        for rows in blocks(len(left), left.block_rows):
            out[rows] = _compare_rows(left[rows], right[rows], metric)
        return out
    out = np.empty((len(left), len(right)), np.result_type(left.dtype, right.dtype))
    for rows in blocks(len(left), left.block_rows):
        some = left[rows]
        for columns in blocks(len(right), right.block_rows):
            out[rows, columns] = _compare_all(some, right[columns], metric)
    return out


class TopK(NamedTuple):
    """The nearest rows of a gallery to each of q queries, best first; of equal scores the earlier row."""

    scores: Array  # floats (q, k)
    indices: npt.NDArray[np.int64]  # (q, k), of rows of the gallery


def top_k(
    queries: Embeddings | npt.ArrayLike,
    gallery: Embeddings | npt.ArrayLike,
    k: int = 10,
    *,
    metric: Metric = "cosine",
) -> TopK:
    """Find the k rows of a gallery that are most similar to each query, exactly, without the matrix of all with all.

    Beside its arguments and its result it needs some 100 MiB, twice that in float64, however many rows there are of
    both; a numpy.memmap stays on the disk.

    Parameters
    ----------
    queries, gallery
        Vectors, shape (q, d) and (m, d); (d,) is one vector.
    k
        1 or more; of a gallery of fewer rows all are returned.
    metric
        As for `similarity`.

    Returns
    -------
    TopK
        Scores and indices, both (q, min(k, m)).

    Raises
    ------
    InvalidInputError
        As `similarity` does, or for a wrong k.
    """
    k = whole_number("k", k, 1)
    left, right = _pair(("queries", queries), ("gallery", gallery), metric)
    k = min(k, len(right))
    scores = np.empty((len(left), k), np.result_type(left.dtype, right.dtype))
    indices = np.empty((len(left), k), np.int64)
    for rows in blocks(len(left), max(1, min(left.block_rows, BLOCK_ELEMENTS // (2 * k + right.block_rows)))):
        some = left[rows]
        best, best_indices = scores[rows, :0], indices[rows, :0]
        for columns in blocks(len(right), right.block_rows):
            seen = np.hstack([best, _compare_all(some, right[columns], metric)])  # earlier rows first
            chosen = _best_columns(seen, min(k, seen.shape[1]))
            num_old = best.shape[1]
            old = np.take_along_axis(best_indices, np.minimum(chosen, num_old - 1), 1) if num_old else 0
            best_indices = np.where(chosen < num_old, old, columns.start + chosen - num_old)
            best = np.take_along_axis(seen, chosen, 1)
        scores[rows], indices[rows] = best, best_indices
    return TopK(scores, indices)


@dataclass(frozen=True)
class _Side:
    """Vectors (n, d) of a comparison, converted and normalised a block at a time."""

    vectors: Array
    norms: Array | None  # (n,), if they are to be divided by them

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> Array:
        block: Array = self.vectors[rows].astype(self.dtype, copy=False)
        return block if self.norms is None else unit(block, self.norms[rows])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.vectors.dtype if self.vectors.dtype == np.float64 else np.dtype(np.float32)

    @property
    def block_rows(self) -> int:
        """Of a block whose elements, and those of its product with another, are `BLOCK_ELEMENTS` at most."""
        return max(1, min(BLOCK_ELEMENTS // self.vectors.shape[1], math.isqrt(BLOCK_ELEMENTS)))


Named: TypeAlias = "tuple[str, Embeddings | npt.ArrayLike]"


def _pair(a: Named, b: Named, metric: Metric) -> tuple[_Side, _Side]:
    """Check two arguments, each with its name."""
    one_of("metric", metric, get_args(Metric))
    (one, left), (other, right) = a, b
    if isinstance(left, Embeddings) and isinstance(right, Embeddings) and left.fingerprint != right.fingerprint:
        raise InvalidInputError(
            f"{one} and {other} are embeddings of different models (fingerprints {left.fingerprint!r} and "
            f"{right.fingerprint!r}), whose vectors have nothing in common. Embed both with one server."
        )
    left, right = _vectors(one, left), _vectors(other, right)
    if left.shape[1] != right.shape[1]:
        raise InvalidInputError(
            f"vectors of {one} have {left.shape[1]} dimensions and those of {other} {right.shape[1]}. "
            "Embed both with the same dimensions."
        )
    is_cosine = metric == "cosine"
    norms = [row_norms(name, side, refuse_zero=is_cosine) for name, side in ((one, left), (other, right))]
    return _Side(left, norms[0] if is_cosine else None), _Side(right, norms[1] if is_cosine else None)


def _vectors(name: str, value: Embeddings | npt.ArrayLike) -> Array:
    try:
        vectors = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InvalidInputError(f"{name} is no array ({error}). Pass vectors of one length.") from error
    is_real = vectors.dtype.kind in "fiu" and np.can_cast(vectors.dtype, np.float64)  # np.longdouble cannot
    if vectors.ndim not in (1, 2) or not is_real or not vectors.shape[-1]:
        raise InvalidInputError(
            f"{name} is an array {vectors.dtype} {vectors.shape}; vectors are real numbers (n, d) or (d,). "
            "To compare texts or images, call EmbeddingClient.similarity."
        )
    return np.asarray(np.atleast_2d(vectors))


def row_norms(name: str, vectors: Array, *, refuse_zero: bool) -> Array:
    """Return the norms of rows (n, d).

    Returns
    -------
    numpy.ndarray
        (n,), float32 if the vectors are and no square on the way overflows or vanishes, and else float64.

    Raises
    ------
    InvalidInputError
        Naming rows that are not finite, or zero if those are refused.
    """
    if vectors.dtype == np.float32:
        squares = np.einsum("nd,nd->n", vectors, vectors)  # several times faster than in float64
        if ((squares > SAFE_SQUARES[0]) & (squares < SAFE_SQUARES[1])).all():
            return np.asarray(np.sqrt(squares))
    norms: Array = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if not (norms < np.inf).all():
        bad = np.flatnonzero(~np.isfinite(norms)).tolist()
        raise InvalidInputError(f"{name} has rows that are not finite, or whose norm is not: {bad[:10]}. Remove them.")
    if refuse_zero and not norms.all():
        bad = np.flatnonzero(norms == 0).tolist()
        raise InvalidInputError(
            f"{name} has rows that are zero, or whose norm is: {bad[:10]}; they have no cosine. Remove them."
        )
    return norms


def unit(vectors: Array, norms: Array, dtype: npt.DTypeLike = None) -> Array:
    """Divide rows by their norms, in the precision of these.

    Returns
    -------
    numpy.ndarray
        Of the dtype of the vectors, at least float32, unless another one is asked for. It begins with a cache line, as
        numpy's seldom do: FAISS then compares up to a tenth faster.
    """
    dtype = np.dtype(dtype or np.result_type(vectors, np.float32))
    buffer = np.empty(vectors.size + CACHE_LINE_BYTES // dtype.itemsize, dtype)
    start = -buffer.__array_interface__["data"][0] % CACHE_LINE_BYTES // dtype.itemsize
    out = buffer[start : start + vectors.size].reshape(vectors.shape)
    return np.asarray(np.divide(vectors, norms[:, None], out=out, casting="same_kind"))


def blocks(size: int, step: int) -> Iterator[slice]:
    """Cut 0 ... size into slices of a step."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _best_columns(scores: Array, k: int) -> npt.NDArray[np.int64]:
    """Return the columns of the k highest scores of every row, best first, of equal ones the first; (n, k)."""
    num_columns = scores.shape[1]
    chosen = np.argpartition(scores, num_columns - k, axis=1)[:, num_columns - k :]
    lowest = np.take_along_axis(scores, chosen, 1).min(axis=1, keepdims=True)
    tied = np.flatnonzero((scores >= lowest).sum(axis=1) > k)  # the partition took any of those
    chosen[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def _compare_rows(a: Array, b: Array, metric: Metric) -> Array:
    if metric in NORM_ORDER:
        return _negative(np.linalg.norm(a - b, NORM_ORDER[metric], axis=-1))
    return np.asarray(np.einsum("nd,nd->n", a, b))


def _compare_all(a: Array, b: Array, metric: Metric) -> Array:
    """Compare all of two blocks; by differences for distances, because dot products lose near duplicates."""
    if metric not in NORM_ORDER:
        return np.asarray(a @ b.T)
    out = np.empty((len(a), len(b)), np.result_type(a, b))
    step = max(1, math.isqrt(BLOCK_ELEMENTS // a.shape[1]))
    for rows in blocks(len(a), step):
        for columns in blocks(len(b), step):
            out[rows, columns] = np.linalg.norm(a[rows, None] - b[None, columns], NORM_ORDER[metric], axis=-1)
    return _negative(out)


def _negative(distances: Array) -> Array:
    return np.subtract(0, distances)  # 0 and not -0 for equal vectors
