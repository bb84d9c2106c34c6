"""The index: recall, and speed against FAISS called directly, of every kind.

FAISS's own index of ours is called with the same parameters in turn, so that nothing is held twice. The vectors are
unit vectors around random centres, of 100 vectors each, made in blocks and never all at once. The queries are others
of the same clusters.

    ./scripts/benchmark index --vectors 10000 --dimensions 512 2048
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from vlembed import Index, _faiss_kinds, top_k

from .report import rates, report

Vectors = npt.NDArray[np.float32]

FINGERPRINT = "benchmark"
K = 10
BATCH = 100
BLOCK_ROWS = 8192
CLUSTER_ROWS = 100
NOISE = np.float32(1)  # against the centre
TRAIN_SHARE = 0.1  # of an ivfpq index's rows, of which every 40 get a list


def clustered(num_rows: int, dimensions: int, num_clusters: int, seed: int) -> Iterator[Vectors]:
    """Yield blocks of unit vectors, always the same ones of a seed, around centres that are the same for all seeds."""
    centres = np.random.default_rng(0).standard_normal((num_clusters, dimensions), np.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        generator = np.random.default_rng([seed, start])
        size = min(BLOCK_ROWS, num_rows - start)
        block = NOISE * generator.standard_normal((size, dimensions), np.float32)
        block += centres[generator.integers(num_clusters, size=size)]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        yield block


def nearest(queries: Vectors, blocks: Iterator[Vectors]) -> npt.NDArray[np.int64]:
    """Search blocks exhaustively, and return the rows that are nearest to each query, (q, K)."""
    scores, rows, start = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0
    for block in blocks:
        of_block = top_k(queries, block, K, metric="dot")
        scores, rows = np.hstack([scores, of_block.scores]), np.hstack([rows, of_block.indices + start])
        order = np.argsort(-scores, axis=1)[:, :K]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        start += len(block)
    return rows


def memory_bytes() -> int:
    """Return what this process holds in memory of its own, without files that it has mapped; on Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would count
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the memory of a process. Run it on Linux.")


def build(kind: str, num_rows: int, dimensions: int, blocks: Iterator[Vectors]) -> tuple[Index, float]:
    """Return an index of all blocks, and the seconds that adding them took."""
    options: dict[str, Any] = {"train_size": max(10_000, int(TRAIN_SHARE * num_rows))} if kind == "ivfpq" else {}
    index = Index.create(kind, dimensions=dimensions, fingerprint=FINGERPRINT, **options)
    start, seconds = 0, 0.0
    for block in blocks:
        ids = list(map(str, range(start, start + len(block))))
        started = time.perf_counter()
        index.add(block, ids=ids, fingerprint=FINGERPRINT)
        seconds += time.perf_counter() - started
        start += len(block)
    return index, seconds


def faiss_search(index: Index, queries: Vectors) -> Callable[[Vectors], Any]:
    """Return the call of FAISS that a search of ours makes, as it would be written without us."""
    with patch.object(_faiss_kinds, "_search", wraps=_faiss_kinds._search) as search:
        index.search_batch(queries, K)
    native, _, k, parameters = search.call_args_list[0].args
    return lambda vectors: native.search(vectors, k, params=parameters)


def recall(index: Index, queries: Vectors, exact: npt.NDArray[np.int64]) -> float:
    """Return the share of the nearest rows that the index finds."""
    found = [{int(match.id) for match in matches} for matches in index.search_batch(queries, K)]
    hits = [len(ours.intersection(theirs)) for ours, theirs in zip(found, exact.tolist(), strict=True)]
    return sum(hits) / exact.size


def speed(index: Index, queries: Vectors, rounds: int) -> dict[str, Any]:
    """Return queries per second, ours and FAISS's in turn, of a batch and one by one."""
    direct = faiss_search(index, queries)

    def one_by_one(search: Callable[[Vectors], Any]) -> Callable[[], int]:
        def run() -> int:
            for number in range(BATCH):
                search(queries[number : number + 1])
            return BATCH

        return run

    batched = rates(
        {
            "ours": lambda: len(index.search_batch(queries, K)),
            "read": lambda: len(list(index.search_batch(queries, K))),
            "theirs": lambda: len(direct(queries)[0]),
        },
        rounds,
    )
    single = rates({"ours": one_by_one(lambda query: index.search(query, K)), "theirs": one_by_one(direct)}, rounds)
    return {
        "batch 100: ours, queries/s": batched["ours"],
        "batch 100: FAISS, queries/s": batched["theirs"],
        "batch 100: ratio": batched["ours"] / batched["theirs"],
        "batch 100: ratio, every match read": batched["read"] / batched["theirs"],
        "batch 1: ours, queries/s": single["ours"],
        "batch 1: FAISS, queries/s": single["theirs"],
        "batch 1: ours takes longer by, ms": 1000 / single["ours"] - 1000 / single["theirs"],
    }


def storage(index: Index, queries: Vectors, folder: Path) -> dict[str, Any]:
    """Save and load the index, and return what that takes."""
    path = folder / "benchmark.index"
    started = time.perf_counter()
    index.save(path)
    save_s = time.perf_counter() - started
    before, started = memory_bytes(), time.perf_counter()
    loaded = Index.load(path)
    load_s = time.perf_counter() - started
    loaded.search_batch(queries, K)
    return {
        "file, bytes per vector": path.stat().st_size / len(index),
        "loaded: memory, bytes per vector": (memory_bytes() - before) / len(index),
        "save, s": save_s,
        "load, s": load_s,
    }


def measure(num_rows: int, dimensions: int, kinds: Sequence[str], seed: int, rounds: int) -> dict[str, Any]:
    """Build and search an index of each kind over the same vectors, and return the rows of the report."""
    num_clusters = max(1, num_rows // CLUSTER_ROWS)

    def blocks() -> Iterator[Vectors]:
        return clustered(num_rows, dimensions, num_clusters, seed)

    queries = next(clustered(BATCH, dimensions, num_clusters, seed + 1))
    exact = nearest(queries, blocks())
    rows: dict[str, Any] = {}
    for kind in kinds:
        before = memory_bytes()
        index, build_s = build(kind, num_rows, dimensions, blocks())
        measured = {
            "build, s": build_s,
            "memory, bytes per vector": (memory_bytes() - before) / num_rows,
            "recall@10": recall(index, queries, exact),
            **speed(index, queries, rounds),
        }
        with TemporaryDirectory() as folder:
            measured |= storage(index, queries, Path(folder))
        del index
        rows |= {f"{kind}, {num_rows} x {dimensions}: {what}": value for what, value in measured.items()}
    return rows


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--kinds", nargs="+", choices=list(_faiss_kinds.KINDS), default=list(_faiss_kinds.KINDS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    for num_rows in arguments.vectors:
        for dimensions in arguments.dimensions:
            rows |= measure(num_rows, dimensions, arguments.kinds, arguments.seed, arguments.rounds)
    report("index", rows, rounds=arguments.rounds, seed=arguments.seed, threads=os.cpu_count())


if __name__ == "__main__":
    main()
