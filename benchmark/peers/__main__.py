"""vlembed beside the systems that its users have: offline, online, and one request at a time.

    ./scripts/benchmark peers --cache DIR --output benchmark/results/peers.json

Every system embeds the same items with the same random weights of the 2B's shape, started here in an environment of its
own at its best settings, which are printed. First each is held against sentence-transformers in float32, then it is
measured. What could not be installed or started is in the report with the reason. The ratios are of medians: above 1,
vlembed is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from server.paths import local_path

from .. import preprocess
from ..environments import InstallError, python_of, versions
from ..gate import TOLERANCE, worse
from ..plot import plot
from ..report import ROOT, cpu_flags, markdown, report
from ..workload import NUM_ITEMS, make_items
from .comparison import SERVED_PEERS, SYSTEMS, Comparison, say
from .systems import PeerProcess, SentenceTransformers, Setup, SystemFailedError

COLUMNS = [  # of the table for README
    "vlembed, items/s",
    "sentence-transformers bf16, items/s",
    "sentence-transformers fp32, items/s",
    "vlembed / sentence-transformers",
    "vlembed / best server of the others",
    "served / in process",
]
NOT_TO_BE_HAD = {
    "text-embeddings-inference": "not in PyPI, published as containers and source; and it has no vision tower"
}


def make_models(cache: Path, layers: int, precision: str | None) -> tuple[Path, Path]:
    """Return the checkpoint, made once, and its repository, made anew; each by a process that gives its memory back."""
    size = f"{layers}-layers" if layers else "full"
    checkpoint, repository = cache / f"random-2b-{size}", cache / f"repository-{size}-{precision or 'default'}"
    if not checkpoint.exists():
        unfinished = cache / f"unfinished-{size}"
        _run("benchmark.peers.checkpoint", "--layers", str(layers), "--output", str(unfinished))
        Path(f"{unfinished}-text").rename(f"{checkpoint}-text")
        unfinished.rename(checkpoint)
    options = ["--precision", precision] if precision else []
    _run("export", "--checkpoint", str(checkpoint), "--output", str(repository), "--overwrite", *options)
    return checkpoint, repository


def _run(module: str, *arguments: str) -> None:
    say(f"python -m {module} {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=sys.stderr, check=True)


def main() -> int:
    """Parse the command line, compare, and judge; 1 if a ratio fell since the run that is committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=local_path, required=True, help="of environments, checkpoints and repositories")
    parser.add_argument("--layers", type=int, default=4, help="of each tower of the checkpoint; 0: the full 2B")
    parser.add_argument("--precision", help="of the CPU graphs, as export takes it; default: export's")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--workloads", nargs="+", choices=NUM_ITEMS, default=list(NUM_ITEMS), metavar="NAME")
    parser.add_argument("--items", type=float, default=1.0, help="share of the usual number of items of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the load at each online rate; 0: none")
    parser.add_argument("--output", type=local_path, help="file for the results, with the plot beside it as PNG")
    parser.add_argument("--against", type=local_path, help="results of an earlier run; fail if a ratio fell")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share that a ratio may fall by")
    arguments = parser.parse_args()
    started = time.monotonic()
    peers: tuple[type[PeerProcess], ...] = (SentenceTransformers, *SERVED_PEERS)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    checkpoint, repository = make_models(arguments.cache.resolve(), arguments.layers, arguments.precision)
    comparison = Comparison(
        Setup(arguments.cache, checkpoint, repository, dtype="fp32", batch_size=1),
        {name: make_items(name, max(1, round(arguments.items * NUM_ITEMS[name]))) for name in arguments.workloads},
        arguments.systems,
        arguments.seconds,
        failed=dict(NOT_TO_BE_HAD),
    )
    try:
        comparison.calibrate()
    except (SystemFailedError, InstallError) as error:
        print(f"error: sentence-transformers is the reference, and failed: {error}", file=sys.stderr)
        return 2
    for number in range(arguments.rounds):
        say(f"round {number + 1} of {arguments.rounds}")
        comparison.round()
    rows = comparison.rows()
    rows |= {
        f"preprocess, {name.replace(': ratio', '')}: vlembed / transformers": value
        for name, value in preprocess.compare(arguments.rounds, num_images=3).items()
        if name.endswith(": ratio")
    }
    whole = report(
        "peers",
        rows,
        flags=cpu_flags(),
        layers=arguments.layers or "all",
        precision=arguments.precision or "default",
        rounds=arguments.rounds,
        items={name: len(items) for name, items in comparison.workloads.items()},
        threads=os.cpu_count(),
        settings=comparison.settings,
        failed=comparison.failed,
        versions={name: version(name) for name in ("onnxruntime", "nvidia-pytriton", "tritonclient")}
        | {peer.requirements: versions(peer.requirements) for peer in peers},
        minutes=round((time.monotonic() - started) / 60, 1),
    )
    say(markdown(rows, COLUMNS))
    if arguments.output:
        arguments.output.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if lines := comparison.lines():
            plot(
                python_of(arguments.cache, "plot"),
                arguments.output.with_suffix(".png"),
                lines,
                title=f"Single queries at rising Poisson rates, {whole['hardware']}",
                x="queries/s answered",
                y="p99 latency, ms",
            )
    return _judge(rows, arguments.against, arguments.tolerance)


def _judge(rows: dict[str, float], against: Path | None, tolerance: float) -> int:
    fallen = worse(rows, against, tolerance) if against else []
    for line in fallen:
        print(f"slower than {against}: {line}", file=sys.stderr)
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
