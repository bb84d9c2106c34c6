"""Similarity against its definitions, which are sentence-transformers', a pair at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from vlembed import Embeddings, InvalidInputError, _similarity, similarity
from vlembed._similarity import Metric

Pair = Callable[[list[float], list[float]], float]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


DEFINITIONS: dict[str, Pair] = {
    "cosine": lambda a, b: dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)),
    "dot": dot,
    "euclidean": lambda a, b: -math.dist(a, b),
    "manhattan": lambda a, b: -math.fsum(abs(x - y) for x, y in zip(a, b, strict=True)),
}
TOLERANCE = 1e-5  # float32 sums of 16 products
GENERATOR = np.random.default_rng(0)
A = GENERATOR.standard_normal((7, 16)).astype(np.float32)
B = GENERATOR.standard_normal((5, 16)).astype(np.float32)
METRICS: list[Metric] = list(DEFINITIONS)  # type: ignore[arg-type]


def embeddings(array: np.ndarray, fingerprint: str = "f") -> Embeddings:
    tokens = np.ones(len(array), np.int32)
    return Embeddings(array, tokens, tokens, fingerprint)


def test_every_metric_is_tested() -> None:
    assert set(get_args(Metric)) == set(DEFINITIONS)


@pytest.mark.parametrize("metric", METRICS)
def test_all_against_all(metric: Metric) -> None:
    theirs = [[DEFINITIONS[metric](a, b) for b in B.tolist()] for a in A.tolist()]
    ours = similarity(A, B, metric=metric)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("metric", METRICS)
def test_pairwise(metric: Metric) -> None:
    theirs = [DEFINITIONS[metric](a, b) for a, b in zip(A[:5].tolist(), B.tolist(), strict=True)]
    np.testing.assert_allclose(similarity(A[:5], B, metric=metric, pairwise=True), theirs, atol=TOLERANCE)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("block_elements", [1, 40, 100])
def test_blocks_change_nothing(
    metric: Metric, pairwise: bool, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = similarity(A[:5], B, metric=metric, pairwise=pairwise)
    monkeypatch.setattr(_similarity, "BLOCK_ELEMENTS", block_elements)
    theirs = similarity(A[:5], B, metric=metric, pairwise=pairwise)
    np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)  # BLAS sums products of another shape in another order


@pytest.mark.parametrize("metric", METRICS)
def test_more_similar_is_higher(metric: Metric) -> None:
    near, far = A[0] + 0.01, -A[0]
    scores = similarity(A[0], [near, far], metric=metric)
    assert scores.shape == (1, 2)
    assert scores[0, 0] > scores[0, 1]


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_near_duplicates_keep_their_digits(metric: Metric) -> None:
    near = A[:1] * np.float32(1 + 1e-6)
    theirs = DEFINITIONS[metric](A[0].tolist(), near[0].tolist())
    np.testing.assert_allclose(similarity(A[:1], near, metric=metric), [[theirs]], rtol=1e-4)
    assert str(similarity(A[:1], A[:1], metric=metric)) == "[[0.]]"


def test_what_counts_as_vectors() -> None:
    ours = similarity(embeddings(A), embeddings(B))
    np.testing.assert_array_equal(ours, similarity(A, B))
    np.testing.assert_allclose(similarity(A.tolist(), B), ours, atol=TOLERANCE)  # a list is float64
    assert similarity([1, 2], [[3, 4]], metric="dot").tolist() == [[11]]
    assert similarity(np.empty((0, 16)), B).shape == (0, 5)
    assert similarity(np.empty((0, 16)), B, metric="manhattan").shape == (0, 5)


@pytest.mark.parametrize(
    ("a", "b", "options", "says"),
    [
        (A, B, {"metric": "hamming"}, "'hamming'"),
        (A, B[:, :8], {}, "16 dimensions and those of b 8"),
        (A, B, {"pairwise": True}, "7 rows and b has 5"),
        (A, [[1.0, 2.0], [3.0]], {}, "b is no array"),
        (A[None], B, {}, "(1, 7, 16)"),
        ("text", B, {}, "EmbeddingClient.similarity"),
        (A, B * 1j, {}, "complex"),
        (A, B.astype(np.longdouble), {}, "b is an array float128"),
        (A, B.astype(np.float64) * 1e200, {}, "or whose norm is not: [0, 1, 2, 3, 4]"),
        (
            A,
            np.where(np.eye(5, 16), np.nan, 1),
            {},
            "b has rows that are not finite, or whose norm is not: [0, 1, 2, 3, 4]",
        ),
        (A, np.eye(5, 16) * [[1], [0], [1], [0], [1]], {}, "b has rows that are zero, or whose norm is: [1, 3]"),
        (embeddings(A, "one"), embeddings(B, "two"), {}, "'one' and 'two'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(a: Any, b: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        similarity(a, b, **options)
    assert says in str(caught.value)


def test_embeddings_are_arrays() -> None:
    ours = embeddings(A)
    assert len(ours) == 7
    assert np.asarray(ours) is A
    assert np.array(ours) is not A
    np.testing.assert_array_equal(np.asarray(ours, np.float64), A.astype(np.float64))
    np.testing.assert_array_equal(np.matmul(ours, A.T), A @ A.T)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e38])
def test_cosine_of_extreme_vectors(scale: float) -> None:
    vectors = np.array([[1, 2, 3], [-1, -2, -3]], np.float32) * np.float32(scale)
    atol = 1e-4 if scale == 1e-40 else 1e-6  # so small a float32 has few bits
    np.testing.assert_allclose(similarity(vectors, vectors), [[1, -1], [-1, 1]], atol=atol)


def test_vectors_of_no_dimensions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\(1, 0\)"):
        similarity(np.zeros((1, 0)), np.zeros((1, 0)), metric="euclidean")
