"""What smaller vectors cost: a retrieval task at every Matryoshka size and precision.

Vectors of d numbers are the first d of the whole ones, scaled to unit norm again, as the model gives them.

    float32   Every score is a cosine.
    int8      8 bits a number, between the smallest and the largest of the gallery in that dimension. The integer
              product of the codes of query and gallery finds 40 candidates; the product of the float query with their
              codes, decoded, orders them.
    binary    A bit a number, its sign. The Hamming distance finds 40 candidates; the product of the float query with
              their int8 codes, decoded, orders them. Those codes are stored as well, and read for candidates alone.

The ranges of int8 are those of the whole gallery, whatever is asked; queries outside are clipped. Quantisation is that
of sentence-transformers. Letters: n queries, m gallery entries, d dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.util import quantize_embeddings

from finetune.scores import ScoreFunctions, mean_of, score_cells
from finetune.tasks import RetrievalTask
from finetune.vectors import VectorTable

MIN_DIMENSIONS = 64  # of the model card
CANDIDATES = 40  # four times the deepest metric
LEVELS = 255  # steps of 8 bits
METRICS = ("recall@1", "recall@10", "ndcg@10")


def score_compression(task: RetrievalTask, table: VectorTable) -> list[dict[str, Any]]:
    """Return a row for each size and precision: `bytes` of a vector that is searched, `bytes_reread`, and metrics.

    Metrics are means over cells, as those of the task itself, which float32 at full size repeats.
    """
    rows = []
    for dimensions in matryoshka_sizes(table.dimensions):
        gallery = table.lookup([entry.row for entry in task.gallery], dimensions)
        scored = score_cells(task, table, functions=score_functions(gallery), dimensions=dimensions)
        sizes = {"float32": (4 * dimensions, 0), "int8": (dimensions, 0), "binary": (dimensions // 8, dimensions)}
        for precision, cells in scored.items():
            size, reread = sizes[precision]
            metrics = mean_of(cells)
            rows.append(
                {"dimensions": dimensions, "precision": precision, "bytes": size, "bytes_reread": reread}
                | {metric: metrics[metric] for metric in METRICS}
            )
    return rows


def matryoshka_sizes(dimensions: int) -> list[int]:
    """Return the powers of two from 64, and the full size."""
    powers = [1 << exponent for exponent in range(MIN_DIMENSIONS.bit_length() - 1, dimensions.bit_length())]
    return sorted({*powers, dimensions} - {power for power in powers if power > dimensions})


def score_functions(gallery: npt.NDArray[np.float32]) -> ScoreFunctions:
    """Return the three precisions as functions of query and gallery vectors, with the ranges of `gallery` (m, d)."""
    ranges = np.stack([gallery.min(axis=0), gallery.max(axis=0)])

    def int8(queries: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        codes = _int8(entries, ranges)
        return _reorder(_int8(queries, ranges) @ codes.T, queries @ _decode(codes, ranges).T)

    def binary(queries: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        nearness = _signs(queries) @ _signs(entries).T  # d - 2 * Hamming distance
        return _reorder(nearness, queries @ _decode(_int8(entries, ranges), ranges).T)

    return {"float32": VectorTable.similarity, "int8": int8, "binary": binary}


def _int8(vectors: torch.Tensor, ranges: npt.NDArray[np.float32]) -> torch.Tensor:
    codes = quantize_embeddings(vectors.numpy(), precision="int8", ranges=ranges)
    return torch.from_numpy(np.asarray(codes, np.float32))  # exact to 2**24 in a product, and near enough beyond


def _decode(codes: torch.Tensor, ranges: npt.NDArray[np.float32]) -> torch.Tensor:
    low, steps = torch.from_numpy(ranges[0]), torch.from_numpy((ranges[1] - ranges[0]) / LEVELS)
    return low + (codes + 128.5) * steps  # the middle of a step


def _signs(vectors: torch.Tensor) -> torch.Tensor:
    bits = np.unpackbits(np.asarray(quantize_embeddings(vectors.numpy(), precision="ubinary")), axis=1)
    return torch.from_numpy(bits[:, : vectors.shape[1]].astype(np.float32) * 2 - 1)


def _reorder(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Keep the fine scores (n, m) of the candidates by the coarse ones, and put all others behind them."""
    candidates = coarse.topk(min(CANDIDATES, coarse.shape[1]), dim=1).indices
    return torch.full_like(fine, -torch.inf).scatter(1, candidates, fine.gather(1, candidates))
