"""How similar vectors are: in pairs or each with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._exceptions import InvalidInputError
from ._result import Embeddings

Metric = Literal["cosine", "dot", "euclidean", "manhattan"]
Vectors = npt.NDArray[np.float64]
BLOCK_ELEMENTS = 2**24  # of the differences that manhattan holds at a time: 128 MiB


def similarity(a: Any, b: Any, *, metric: Metric = "cosine", pairwise: bool = False) -> npt.NDArray[np.float32]:
    """Compare vectors; more is more similar, so distances are negative.

    Parameters
    ----------
    a, b
        Embeddings, or arrays of shape (n, d) and (m, d); one vector (d,) counts as one row.
    metric
        "cosine", "dot", or the negative "euclidean" or "manhattan" distance.
    pairwise
        Compare row i of `a` with row i of `b` only.

    Returns
    -------
    numpy.ndarray, float32
        Shape (n, m), or (n,) if pairwise.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, an unknown metric, vectors of different models, or one that is zero or not finite.
    """
    if isinstance(a, Embeddings) and isinstance(b, Embeddings) and a.fingerprint != b.fingerprint:
        raise InvalidInputError(
            f"a is of the model {a.fingerprint} and b of {b.fingerprint}: their vectors have nothing in common. Embed both "
            "with the same server.",
            code="FINGERPRINTS_DIFFER",
        )
    if metric not in METRICS:
        raise InvalidInputError(f"metric is {metric!r}; one of {', '.join(METRICS)} is needed.", code="METRIC_UNKNOWN")
    left, right = _vectors(a, "a"), _vectors(b, "b")
    if left.shape[1] != right.shape[1] or (pairwise and len(left) != len(right)):
        raise InvalidInputError(
            f"a has shape {left.shape} and b {right.shape}; the same dimensions are needed, and the same number of rows if "
            "pairwise.",
            code="SHAPE_MISMATCH",
        )
    if metric == "cosine":
        left, right = _unit(left, "a"), _unit(right, "b")
    each_with_each, in_pairs = METRICS[metric]
    return (in_pairs if pairwise else each_with_each)(left, right).astype(np.float32)


def _vectors(values: Any, name: str) -> Vectors:
    try:
        array = np.atleast_2d(np.asarray(values, np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} is no array of numbers ({error}). Pass vectors.", code="WRONG_TYPE") from error
    if array.ndim != 2:
        raise InvalidInputError(f"{name} has shape {array.shape}; (n, d) is needed.", code="SHAPE_MISMATCH")
    if bad := np.flatnonzero(~np.isfinite(array).all(axis=1)).tolist():
        raise InvalidInputError(f"rows {bad[:10]} of {name} are not finite.", code="NOT_FINITE")
    return array


def _unit(vectors: Vectors, name: str) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if zero := np.flatnonzero(norms == 0).tolist():
        raise InvalidInputError(f"rows {zero[:10]} of {name} are zero and have no direction.", code="ZERO_VECTOR")
    return np.asarray(vectors / norms)


def _dot(a: Vectors, b: Vectors) -> Vectors:
    return np.asarray(a @ b.T)


def _euclidean(a: Vectors, b: Vectors) -> Vectors:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T)
    return -np.sqrt(np.maximum(squares, 0))  # rounding can make it a little negative


def _manhattan(a: Vectors, b: Vectors) -> Vectors:
    rows = max(1, BLOCK_ELEMENTS // max(1, b.size))
    blocks = [np.abs(a[i : i + rows, None] - b).sum(-1) for i in range(0, len(a), rows)]
    return -np.concatenate(blocks) if blocks else np.zeros((0, len(b)))


METRICS: dict[str, tuple[Callable[[Vectors, Vectors], Vectors], Callable[[Vectors, Vectors], Vectors]]] = {
    "cosine": (_dot, lambda a, b: (a * b).sum(1)),
    "dot": (_dot, lambda a, b: (a * b).sum(1)),
    "euclidean": (_euclidean, lambda a, b: -np.linalg.norm(a - b, axis=1)),
    "manhattan": (_manhattan, lambda a, b: -np.abs(a - b).sum(1)),
}
