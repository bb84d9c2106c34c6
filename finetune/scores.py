"""Tasks to numbers, by the evaluators of sentence-transformers. Every metric is theirs; none is computed here.

Of r relevant entries, recall@k is the share that is found in the first k: it cannot reach 1 where r > k. success@k,
which they call accuracy@k, is the share of queries that find any. Scores are cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from finetune.tasks import Entry, PairTask, RetrievalTask, language_label
from finetune.vectors import VectorTable

DEPTHS = (1, 5, 10)  # k of recall@k and success@k
CUTOFF = 10  # of MRR and nDCG
METRICS = (
    *(f"recall@{k}" for k in DEPTHS),
    *(f"success@{k}" for k in DEPTHS),
    f"mrr@{CUTOFF}",
    f"ndcg@{CUTOFF}",
)
PAIR_METRICS = ("ap", "accuracy", "accuracy_threshold", "f1", "f1_threshold", "precision", "recall")

Metrics = dict[str, float]
ScoreFunctions = Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def score_similarity(task: PairTask, table: VectorTable) -> dict[str, Any]:
    """Correlate cosines with scores."""
    evaluator = EmbeddingSimilarityEvaluator(task.rows_a, task.rows_b, task.scores, write_csv=False)  # type: ignore[arg-type]
    found = evaluator(table)  # type: ignore[arg-type]
    metrics = {name: _number(found[f"{name}_cosine"]) for name in ("spearman", "pearson")}
    return {"task": "similarity", "name": task.name, "file": str(task.path), "pairs": len(task.scores), **metrics}


def score_pairs(task: PairTask, table: VectorTable) -> dict[str, Any]:
    """Tell pairs of label 1 from those of 0 by their cosine, with the thresholds that are best on these pairs."""
    labels = task.labels()
    evaluator = BinaryClassificationEvaluator(task.rows_a, task.rows_b, labels, write_csv=False)  # type: ignore[arg-type]
    found = evaluator(table)  # type: ignore[arg-type]
    metrics = {name: _number(found[f"cosine_{name}"]) for name in PAIR_METRICS}
    counts = {"pairs": len(labels), "positives": sum(labels)}
    return {"task": "pairs", "name": task.name, "file": str(task.path), **counts, **metrics}


def score_retrieval(task: RetrievalTask, table: VectorTable) -> dict[str, Any]:
    """Search, in a cell for each language of the queries and each of the gallery, and average over cells."""
    cells = score_cells(task, table, functions={"cosine": table.similarity})["cosine"]
    return {
        "task": "retrieval",
        "name": task.name,
        "queries_file": str(task.queries_path),
        "gallery_file": str(task.gallery_path),
        "queries": len(task.queries),
        "gallery": len(task.gallery),
        "cells_in_mean": sum(cell["in_mean"] for cell in cells),
        **mean_of(cells),
        "cells": cells,
    }


def score_cells(
    task: RetrievalTask, table: VectorTable, *, functions: ScoreFunctions, dimensions: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Score every cell: the queries of one language against the gallery's entries of one language, and no others.

    Parameters
    ----------
    functions
        By name, from queries (n, d) and gallery (m, d) to scores (n, m).
    dimensions
        d; left out, all.

    Returns
    -------
    dict
        By name of the function, a list of cells: `query_language`, `gallery_language`, `queries`, `gallery`,
        `without_relevant` (queries that have nothing relevant in this language and are left out of the cell),
        `in_mean`, and the metrics, unless no query is left. Cells of one language on both sides are in the mean only if
        there are no others: the same text on both sides would be found trivially.
    """
    scored: dict[str, list[dict[str, Any]]] = {name: [] for name in functions}
    galleries = _by_language(task.gallery)
    for query_language, queries in _by_language(task.queries).items():
        for gallery_language, gallery in galleries.items():
            here = frozenset(gallery)
            answerable = [query for query in queries if not task.relevant[query].isdisjoint(here)]
            cell: dict[str, Any] = {
                "query_language": language_label(query_language, task.queries),
                "gallery_language": language_label(gallery_language, task.gallery),
                "queries": len(answerable),
                "gallery": len(gallery),
                "without_relevant": len(queries) - len(answerable),
            }
            same = bool(query_language) and query_language == gallery_language
            for name, metrics in _search(task, table, answerable, gallery, functions, dimensions).items():
                scored[name].append(cell | {"in_mean": bool(answerable), "same": same} | metrics)
    for cells in scored.values():
        has_others = any(cell["in_mean"] and not cell["same"] for cell in cells)
        for cell in cells:
            cell["in_mean"] &= not (cell.pop("same") and has_others)
    return scored


def mean_of(cells: Sequence[Mapping[str, Any]]) -> Metrics:
    """Average every metric over the cells that count; each counts the same, however many queries it has."""
    counted = [cell for cell in cells if cell["in_mean"]]
    return {metric: fmean(cell[metric] for cell in counted) for metric in METRICS} if counted else {}


def _by_language(entries: Sequence[Entry]) -> dict[str, list[int]]:
    indexes: dict[str, list[int]] = {language: [] for language in sorted({entry.language for entry in entries})}
    for index, entry in enumerate(entries):
        indexes[entry.language].append(index)
    return indexes


def _search(
    task: RetrievalTask,
    table: VectorTable,
    queries: Sequence[int],
    gallery: Sequence[int],
    functions: ScoreFunctions,
    dimensions: int | None,
) -> dict[str, Metrics]:
    if not queries:
        return {name: {} for name in functions}
    here = frozenset(gallery)
    evaluator = InformationRetrievalEvaluator(
        {str(query): task.queries[query].row for query in queries},
        {_key(index): task.gallery[index].row for index in gallery},
        {str(query): {_key(index) for index in task.relevant[query] & here} for query in queries},
        corpus_chunk_size=len(gallery),
        mrr_at_k=[CUTOFF],
        ndcg_at_k=[CUTOFF],
        map_at_k=[CUTOFF],
        accuracy_at_k=list(DEPTHS),
        precision_recall_at_k=list(DEPTHS),
        write_csv=False,
        truncate_dim=dimensions,
        score_functions=dict(functions),
    )
    found = evaluator(table)  # type: ignore[arg-type]
    return {
        name: {metric: found[f"{name}_{metric.replace('success', 'accuracy')}"] for metric in METRICS}
        for name in functions
    }


def _key(index: int) -> str:
    return f"{index:09d}"  # their order, which decides between equal scores, is that of the gallery


def _number(value: float) -> float | None:
    """Return None, which JSON has, for what is undefined, such as a correlation with equal cosines."""
    return value if math.isfinite(value) else None
