"""Search the settings of a repository that suit this machine, and write them into its configs.

Instances, threads, batch bounds and queue delays of each model are tried one after the other, each with the best of
those before it, under many clients that send one item at a time. A value is taken if it is better by more than noise.
The configs are written only if all of them together are better than before.

    ./scripts/benchmark tune --repository DIR
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.launch import ServerStartError, TritonServer
from server.paths import local_path
from vlembed import EmbeddingClient
from vlembed import Item as ClientItem

from .report import report
from .serving import with_configs
from .workload import NUM_ITEMS, Item, make_items

MIN_GAIN = 1.03  # that a value has to bring: runs in a row differ by a few per cent
CORES = os.cpu_count() or 1
THREADS = "intra_op_thread_count"


@dataclass(frozen=True)
class Knob:
    """One setting of one model."""

    name: str
    values: tuple[int, ...]
    write: Callable[[str, int], str]  # into the text of a config
    read: Callable[[Any], int]  # out of a parsed one; 0: not set


def _set_threads(text: str, value: int) -> str:
    line = f'parameters {{ key: "{THREADS}"  value {{ string_value: "{value}" }} }}'
    found = re.compile(rf'^parameters {{ key: "{THREADS}".*$', re.MULTILINE)
    return found.sub(line, text) if found.search(text) else f"{text.rstrip()}\n{line}\n"


def _set_delay(text: str, value: int) -> str:
    text = re.sub(r"max_queue_delay_microseconds: *\d+ *", "", text)
    return re.sub(
        r"^dynamic_batching \{", rf"dynamic_batching {{ max_queue_delay_microseconds: {value}", text, flags=re.M
    )


INSTANCES = Knob(
    "instances",
    tuple(range(1, min(CORES, 4) + 1)),
    lambda text, value: re.sub(r"(?m)^(instance_group \[ \{ count:) *\d+", rf"\1 {value}", text),
    lambda config: int(config.instance_group[0].count),
)
TOWER_KNOBS = (
    INSTANCES,
    Knob(
        "threads",
        tuple(sorted({1, max(1, CORES // 2), CORES})),
        _set_threads,
        lambda config: int(config.parameters[THREADS].string_value or 0) if THREADS in config.parameters else 0,
    ),
    Knob(
        "max_batch_size",
        (4, 8, 16, 32),
        lambda text, value: re.sub(r"(?m)^max_batch_size: *\d+", f"max_batch_size: {value}", text),
        lambda config: int(config.max_batch_size),
    ),
    Knob(
        "max_queue_delay_microseconds",
        (0, 1000, 5000),
        _set_delay,
        lambda config: int(config.dynamic_batching.max_queue_delay_microseconds),
    ),
)
KNOBS = {"language_model": TOWER_KNOBS, "vision_encoder": TOWER_KNOBS, "preprocess": (INSTANCES,)}


def change(text: str, knob: Knob, value: int) -> str:
    """Return the text of a config with another value.

    Raises
    ------
    ValueError
        The config is not written as those of this project, so that the value did not arrive.
    """
    changed = knob.write(text, value)
    if knob.read(parse(changed)) != value:
        raise ValueError(f"{knob.name} could not be set to {value}. Write the config as model_repository/ has it.")
    return changed


def parse(text: str) -> Any:
    """Parse the text of a config."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@dataclass(frozen=True)
class Score:
    """What a configuration is worth."""

    throughput: float  # items/s of many clients
    latency_ms: float  # median of one client

    def gain_over(self, other: Score, objective: str) -> float:
        """Return how many times better this is."""
        if objective == "latency":
            return other.latency_ms / self.latency_ms
        return self.throughput / other.throughput


def measure(repository: Path, items: list[Item], clients: int, rounds: int) -> Score:
    """Serve a repository and return medians."""
    requests = [ClientItem(text=text or None, image=image or None) for text, image in items]
    rates, latencies = [], []
    with (
        TritonServer(repository) as server,
        EmbeddingClient(server.grpc_url, timeout_s=600) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        list(pool.map(client.embed, requests))  # warm
        for _ in range(rounds):
            started = time.perf_counter()
            list(pool.map(client.embed, requests))
            rates.append(len(requests) / (time.perf_counter() - started))
            for request in requests[: max(1, len(requests) // clients)]:
                started = time.perf_counter()
                client.embed(request)
                latencies.append(1e3 * (time.perf_counter() - started))
    return Score(statistics.median(rates), statistics.median(latencies))


def tune(
    configs: dict[str, str], measure: Callable[[dict[str, str]], Score], objective: str
) -> tuple[dict[str, str], dict[str, int]]:
    """Try the knobs in turn.

    Parameters
    ----------
    configs
        The text of the config of each model of `KNOBS`.
    measure
        Returns what configs are worth; a `ServerStartError` rules them out.
    objective
        `throughput` or `latency`.

    Returns
    -------
    dict, dict
        The best configs, and what was changed in them.
    """
    chosen: dict[str, int] = {}
    for model, knobs in KNOBS.items():
        for knob in knobs:
            present = measure(configs)  # again for each knob: the machine may have changed
            best, best_gain = None, MIN_GAIN
            for value in knob.values:
                if value == knob.read(parse(configs[model])):
                    continue
                text = change(configs[model], knob, value)
                try:
                    gain = measure({**configs, model: text}).gain_over(present, objective)
                except ServerStartError as error:
                    print(f"{model}, {knob.name} {value}: {error}", file=sys.stderr, flush=True)
                    continue
                print(f"{model}, {knob.name} {value}: {gain:.2f} of the best so far", file=sys.stderr, flush=True)
                if gain > best_gain:
                    best, best_gain = (value, text), gain
            if best:
                chosen[f"{model}, {knob.name}"], configs = best[0], {**configs, model: best[1]}
    return configs, chosen


def main() -> int:
    """Parse the command line, search, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=local_path, required=True, help="its configs are changed")
    parser.add_argument("--objective", choices=["throughput", "latency"], default="throughput")
    parser.add_argument("--workload", choices=NUM_ITEMS, default="mix", help="what clients send")
    parser.add_argument("--items", type=int, default=64, help="of a round")
    parser.add_argument("--clients", type=int, default=16, help="with a request in flight each")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    items = make_items(arguments.workload, arguments.items)
    before = {model: (repository / model / "config.pbtxt").read_text(encoding="utf-8") for model in KNOBS}

    def measured(configs: dict[str, str]) -> Score:
        with tempfile.TemporaryDirectory() as folder:
            copy = with_configs(repository, Path(folder), configs)
            return measure(copy, items, arguments.clients, arguments.rounds)

    after, chosen = tune(before, measured, arguments.objective)
    scores = [(measured(before), measured(after)) for _ in range(arguments.rounds)] if chosen else []
    gain = float(np.median([new.gain_over(old, arguments.objective) for old, new in scores])) if scores else 1.0
    rows: dict[str, Any] = dict(chosen)
    for when, pick in (("before", 0), ("after", 1)):
        if scores:
            rows[f"{when}: items/s"] = statistics.median(pair[pick].throughput for pair in scores)
            rows[f"{when}: one request, ms"] = statistics.median(pair[pick].latency_ms for pair in scores)
    rows[f"{arguments.objective}: after / before"] = gain
    is_better = gain >= MIN_GAIN
    report("tune", rows, repository=repository.name, objective=arguments.objective, workload=arguments.workload,
           written=is_better)  # fmt: skip
    if not is_better:
        print("note: nothing was written, for no settings are better than the present ones", file=sys.stderr)
        return 0
    for model, text in after.items():
        (repository / model / "config.pbtxt").write_text(text, encoding="utf-8")
    print(f"note: wrote the configs of {', '.join(after)} in {repository}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
