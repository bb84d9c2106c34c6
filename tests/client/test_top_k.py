"""The nearest rows without the whole matrix, against sorting the whole matrix; and the memory that both take."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.client.test_similarity import embeddings
from vlembed import InvalidInputError, _similarity, similarity, top_k
from vlembed._similarity import Metric

TOLERANCE = 1e-5  # float32 sums of 16 products
MIB = 1 << 20
GENERATOR = np.random.default_rng(0)
QUERIES = GENERATOR.standard_normal((9, 16)).astype(np.float32)
GALLERY = GENERATOR.standard_normal((200, 16)).astype(np.float32)


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("block_elements", [1, 300, 1 << 22])
@pytest.mark.parametrize("k", [1, 7, 199, 200, 1000])
def test_against_sorting(metric: Metric, block_elements: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = similarity(QUERIES, GALLERY, metric=metric)
    theirs = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    monkeypatch.setattr(_similarity, "BLOCK_ELEMENTS", block_elements)
    ours = top_k(QUERIES, GALLERY, k, metric=metric)
    np.testing.assert_array_equal(ours.indices, theirs)
    np.testing.assert_allclose(ours.scores, np.take_along_axis(matrix, theirs, 1), atol=TOLERANCE)
    assert ours.scores.dtype == np.float32


@pytest.mark.parametrize("block_elements", [1, 60, 1 << 22])
def test_of_equal_rows_the_first_ones(block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_similarity, "BLOCK_ELEMENTS", block_elements)
    gallery = GENERATOR.integers(-1, 2, (300, 3)).astype(np.float32)  # 27 different rows, in whole numbers
    for k in (1, 10, 150):
        theirs = np.argsort(-similarity(gallery[:9], gallery, metric="dot"), axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(top_k(gallery[:9], gallery, k, metric="dot").indices, theirs)


def test_what_counts_as_vectors(tmp_path: Path) -> None:
    theirs = top_k(QUERIES, GALLERY).indices
    np.save(tmp_path / "gallery.npy", GALLERY)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    np.testing.assert_array_equal(top_k(QUERIES, mapped).indices, theirs)
    np.testing.assert_array_equal(top_k(embeddings(QUERIES, "f"), embeddings(GALLERY, "f")).indices, theirs)
    assert top_k(QUERIES[0], GALLERY, 3).indices.tolist() == theirs[:1, :3].tolist()
    assert top_k(QUERIES.astype(np.float16), GALLERY).scores.dtype == np.float32
    assert top_k([[1.0, 0.0]], [[2, 1], [1, 0]], 1).scores.dtype == np.float64
    assert top_k(QUERIES, GALLERY[:0]).scores.shape == (9, 0)
    assert top_k(QUERIES[:0], GALLERY).indices.shape == (0, 10)


@pytest.mark.parametrize(
    ("queries", "gallery", "options", "says"),
    [
        (QUERIES, GALLERY, {"k": 0}, "k is 0"),
        (QUERIES, GALLERY, {"k": 2.5}, "k is 2.5"),
        (QUERIES, GALLERY, {"k": True}, "k is True"),
        (QUERIES, GALLERY, {"metric": "hamming"}, "'hamming'"),
        (QUERIES, GALLERY[:, :8], {}, "vectors of queries have 16 dimensions and those of gallery 8"),
        (QUERIES, GALLERY * 0, {}, "gallery has rows that are zero"),
        (QUERIES * np.nan, GALLERY, {}, "queries has rows that are not finite"),
        ("text", GALLERY, {}, "queries is an array"),
        (embeddings(QUERIES, "one"), embeddings(GALLERY, "two"), {}, "'one' and 'two'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(queries: Any, gallery: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        top_k(queries, gallery, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_memory_is_bounded(metric: Metric) -> None:
    """The bound does not grow with the arguments; the matrix has 200 MiB here."""
    gallery = np.random.default_rng(0).standard_normal((20_480, 64), np.float32)
    queries = gallery[:2560]
    assert peak_bytes(lambda: top_k(queries, gallery, 10, metric=metric)) < 150 * MIB
    result_bytes = 12 * 1024 * 4096
    large_k = peak_bytes(lambda: top_k(queries[:1024], gallery[:8192], 4096, metric=metric))
    assert large_k < result_bytes + 150 * MIB
    matrix_bytes = 4 * 2560 * 20_480
    assert peak_bytes(lambda: similarity(queries, gallery, metric=metric)) < matrix_bytes + 60 * MIB


def peak_bytes(work: Any) -> int:
    tracemalloc.start()  # numpy tells it of its arrays
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
