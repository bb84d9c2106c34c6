"""The engine for clusters: Ray Data hands shards to workers; this process alone writes the manifest."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .._exceptions import VlembedError
from .._extras import require
from ._manifest import ShardRecord
from ._worker import Task, Worker


def run_on_ray(
    worker: Worker, tasks: Sequence[Task], num_workers: int | None, advance: Callable[[int], object]
) -> Generator[ShardRecord, None, None]:
    """Yield the record of every task as it ends.

    Raises
    ------
    VlembedError
        As `Worker.run`.
    """
    data = require("ray.data", "ray")

    def run(row: dict[str, Any]) -> dict[str, Any]:
        try:
            (record,) = worker.run([tasks[row["item"]]])
            return {"item": row["item"], "record": json.dumps(record), "error": b""}
        except VlembedError as error:  # as a value, for Ray wraps what is raised in an error of its own
            return {"item": row["item"], "record": "", "error": pickle.dumps(error)}

    if not tasks:
        return
    with _connected(require("ray", "ray")), _without_bars(data):
        compute = data.TaskPoolStrategy(num_workers)
        dataset = data.from_items(list(range(len(tasks))), override_num_blocks=len(tasks)).map(run, compute=compute)
        for result in dataset.iter_rows():
            if result["error"]:
                raise pickle.loads(result["error"])
            advance(tasks[result["item"]].num_rows)
            yield json.loads(result["record"])


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Use the Ray that this process is connected to; else the one of RAY_ADDRESS, or start one, until the end."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_bars(data: Any) -> Iterator[None]:
    """Keep Ray Data from drawing its bars over ours, and from telling of it."""
    context, log = data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])
