"""Search the settings of a repository that suit this machine, and write them into its configs.

Instances, threads, batch bounds and queue delays of each model are tried one after the other, each with the best of
those before it. The present settings and a candidate are served at once and work in turns. A value is taken if it is
better by more than noise. The configs are written only if all of them together are better than before.

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
TIMEOUT_S = 600.0  # of a request


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


def gain(
    repository: Path, configs: Sequence[dict[str, str]], work: Callable[[EmbeddingClient], object], rounds: int
) -> float:
    """Return how many times faster the second of two sets of configs is; both are served at once and work in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        clients = []
        for texts in configs:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(TritonServer(with_configs(repository, folder, texts)))
            clients.append(stack.enter_context(EmbeddingClient(server.grpc_url, timeout_s=TIMEOUT_S)))
        for client in clients:
            work(client)  # warm
        for _ in range(rounds):
            for client, times in zip(clients, taken, strict=True):
                started = time.perf_counter()
                work(client)
                times.append(time.perf_counter() - started)
    return statistics.median(before / after for before, after in zip(*taken, strict=True))


def workload(objective: str, items: list[Item], num_clients: int) -> Callable[[EmbeddingClient], object]:
    """Return what is timed: many clients at once for `throughput`, one of them for `latency`."""
    requests = [ClientItem(text=text or None, image=image or None) for text, image in items]

    def work(client: EmbeddingClient) -> None:
        with ThreadPoolExecutor(num_clients if objective == "throughput" else 1) as pool:
            list(pool.map(client.embed, requests))

    return work


def tune(
    configs: dict[str, str], gain: Callable[[dict[str, str], dict[str, str]], float]
) -> tuple[dict[str, str], dict[str, int]]:
    """Try the knobs in turn.

    Parameters
    ----------
    configs
        The text of the config of each model of `KNOBS`.
    gain
        Returns how many times better its second configs are than its first; a `ServerStartError` rules them out.

    Returns
    -------
    dict, dict
        The best configs, and what was changed in them.
    """
    chosen: dict[str, int] = {}
    for model, knobs in KNOBS.items():
        for knob in knobs:
            best, best_gain = configs, MIN_GAIN
            for value in knob.values:
                if value == knob.read(parse(configs[model])):
                    continue
                candidate = {**configs, model: change(configs[model], knob, value)}
                try:
                    found = gain(configs, candidate)
                except ServerStartError as error:
                    say(f"{model}, {knob.name} {value}: {error}")
                    continue
                say(f"{model}, {knob.name} {value}: {found:.2f} of the best so far")
                if found > best_gain:
                    best, best_gain = candidate, found
                    chosen[f"{model}, {knob.name}"] = value
            configs = best
    return configs, chosen


def say(what: str) -> None:
    """Tell how far the search is."""
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """Parse the command line, search, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=local_path, required=True, help="its configs are changed")
    parser.add_argument("--objective", choices=["throughput", "latency"], default="throughput")
    parser.add_argument("--workload", choices=NUM_ITEMS, default="mix", help="what clients send")
    parser.add_argument("--items", type=int, default=32, help="of a round")
    parser.add_argument("--clients", type=int, default=16, help="with a request in flight each, for the throughput")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    work = workload(arguments.objective, make_items(arguments.workload, arguments.items), arguments.clients)
    before = {model: (repository / model / "config.pbtxt").read_text(encoding="utf-8") for model in KNOBS}

    def measured(present: dict[str, str], candidate: dict[str, str]) -> float:
        return gain(repository, [present, candidate], work, arguments.rounds)

    after, chosen = tune(before, measured)
    total = measured(before, after) if chosen else 1.0
    is_better = total > MIN_GAIN
    rows = {**chosen, f"{arguments.objective}: after / before": total}
    report("tune", rows, repository=repository.name, workload=arguments.workload, written=is_better)
    if is_better:
        for model, text in after.items():
            (repository / model / "config.pbtxt").write_text(text, encoding="utf-8")
    say(f"note: {'wrote' if is_better else 'left'} the configs of {', '.join(KNOBS)} in {repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
