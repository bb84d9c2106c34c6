"""Similarity of vectors, higher is more similar; numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ._exceptions import InvalidInputError
from ._result import Embeddings

Metric: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]
Array: TypeAlias = npt.NDArray[Any]

NORM_ORDER = {"euclidean": 2, "manhattan": 1}
BLOCK_ELEMENTS = 1 << 22  # of a temporary array of differences: 16 MiB in float32


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
    if metric not in get_args(Metric):
        raise InvalidInputError(f"metric is {metric!r}. Pass one of {', '.join(map(repr, get_args(Metric)))}.")
    if isinstance(a, Embeddings) and isinstance(b, Embeddings) and a.fingerprint != b.fingerprint:
        raise InvalidInputError(
            f"a and b are embeddings of different models (fingerprints {a.fingerprint!r} and {b.fingerprint!r}), whose "
            "vectors have nothing in common. Embed both with one server."
        )
    left, right = _vectors("a", a), _vectors("b", b)
    if left.shape[1] != right.shape[1]:
        raise InvalidInputError(
            f"vectors of a have {left.shape[1]} dimensions and those of b {right.shape[1]}. "
            "Embed both with the same dimensions."
        )
    if pairwise and len(left) != len(right):
        raise InvalidInputError(
            f"pairwise compares row by row, but a has {len(left)} rows and b has {len(right)}. Pass as many of both."
        )
    if metric == "cosine":
        left, right = _unit("a", left), _unit("b", right)
    if metric in NORM_ORDER:
        distances = _row_distances if pairwise else _all_distances
        return np.subtract(0, distances(left, right, NORM_ORDER[metric]))  # 0 and not -0 for equal vectors
    return np.asarray(np.einsum("nd,nd->n", left, right) if pairwise else left @ right.T)


def _vectors(name: str, value: Embeddings | npt.ArrayLike) -> Array:
    try:
        vectors = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InvalidInputError(f"{name} is no array ({error}). Pass vectors of one length.") from error
    if vectors.ndim not in (1, 2) or vectors.dtype.kind not in "fiu" or not vectors.shape[-1]:
        raise InvalidInputError(
            f"{name} is an array {vectors.dtype} {vectors.shape}; vectors are real numbers (n, d) or (d,). "
            "To compare texts or images, call EmbeddingClient.similarity."
        )
    vectors = np.atleast_2d(vectors)
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float32)
    if bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        raise InvalidInputError(f"{name} has rows that are not finite: {bad[:10]}. Remove them.")
    return np.asarray(vectors)


def _unit(name: str, vectors: Array) -> Array:
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = vectors / np.where(largest > 0, largest, 1)  # so that no square overflows or vanishes
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    if bad := np.flatnonzero(norms == 0).tolist():
        raise InvalidInputError(
            f"{name} has zero rows: {bad[:10]}; the cosine of a zero vector is undefined. Remove them."
        )
    return np.asarray(scaled / norms)


def _blocks(size: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, size, step))


def _row_distances(a: Array, b: Array, order: int) -> Array:
    out = np.empty(len(a), np.result_type(a, b))
    for rows in _blocks(len(a), max(1, BLOCK_ELEMENTS // a.shape[1])):
        out[rows] = np.linalg.norm(a[rows] - b[rows], order, axis=-1)
    return out


def _all_distances(a: Array, b: Array, order: int) -> Array:
    """Compute square blocks, so that memory stays bounded; differences, because dot products lose near duplicates."""
    out = np.empty((len(a), len(b)), np.result_type(a, b))
    step = max(1, math.isqrt(BLOCK_ELEMENTS // a.shape[1]))
    for rows in _blocks(len(a), step):
        for columns in _blocks(len(b), step):
            out[rows, columns] = np.linalg.norm(a[rows, None] - b[None, columns], order, axis=-1)
    return out
