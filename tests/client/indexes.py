"""What the tests of the index share: every store and kind, vectors of clusters, and exhaustive search by numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlembed import Index, Match

DIMENSIONS = 16
FINGERPRINT = "f"
FAISS = ("flat", "hnsw", "ivfpq", "int8", "binary")
MILVUS = ("milvus flat", "milvus hnsw")
OPTIONS: dict[str, dict[str, int]] = {"int8": {"train_size": 100}, "binary": {"oversampling": 40}}
SCORE = 1e-5  # float32 sums of 16 products
RECALL = 0.9  # at least, of the kinds that do not compare all
EXACT = ("flat", "ivfpq", "milvus flat")  # ivfpq has yet to be trained here

MakeIndex = Callable[..., Index]


def vectors(num_rows: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Return float32 rows around a few centres; more of a seed begin with fewer of it."""
    centres = np.random.default_rng(1).standard_normal((10, dimensions))
    noise = np.random.default_rng(seed).standard_normal((num_rows, dimensions))
    return (centres[np.arange(num_rows) * 7 % 10] + noise).astype(np.float32)


@dataclass
class Exhaustive:
    """The same rows in a dict, searched by definition."""

    rows: dict[str, tuple[np.ndarray, dict[str, Any]]] = field(default_factory=dict)

    def upsert(self, ids: Iterable[str], array: np.ndarray, metadata: Iterable[Mapping[str, Any] | None]) -> None:
        for own, row, about in zip(ids, array, metadata, strict=True):
            self.rows[own] = (row, dict(about or {}))

    def cosines(self, query: np.ndarray, is_met: Callable[[dict[str, Any]], bool]) -> dict[str, float]:
        return {
            own: float(np.dot(query, row) / np.linalg.norm(query) / np.linalg.norm(row))
            for own, (row, about) in self.rows.items()
            if is_met(about)
        }


def assert_congruent(
    kind: str,
    index: Index,
    exhaustive: Exhaustive,
    queries: np.ndarray,
    k: int,
    where: Mapping[str, Any] | None = None,
    is_met: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> None:
    """Hold a search against the exhaustive one: as many, in order, with right scores and metadata, and the nearest."""
    hits, total = 0, 0
    for query, ours in zip(queries, index.search_batch(queries, k, where=where), strict=True):
        cosines = exhaustive.cosines(query, is_met)
        theirs = sorted(cosines.values(), reverse=True)[:k]
        assert len(ours) == len(theirs)
        assert len({match.id for match in ours}) == len(ours)
        assert [match.score for match in ours] == sorted((match.score for match in ours), reverse=True)
        for match in ours:
            assert match.metadata == exhaustive.rows[match.id][1]
            assert abs(match.score - cosines[match.id]) < SCORE
        if theirs:
            hits += sum(match.score > theirs[-1] - SCORE for match in ours)
            total += len(theirs)
    assert hits >= total * (1 if kind in EXACT else RECALL)


def ids_of(matches: Iterable[Match]) -> list[str]:
    return [match.id for match in matches]
