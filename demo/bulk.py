"""Embed 100,000 texts and over 2,000 pictures with `vlembed bulk`, kill it on the way, and count what is there.

    python -m demo.bulk --url grpc://127.0.0.1:8001 --data DATA --output DIR [--kills 3]

DATA is what `python -m demo.build` makes: its texts, and its pictures as training saw them and augmented. The command
is killed by SIGKILL at random moments and begun again until it ends; then every checksum and every row is checked. Only
calls what a user would.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from demo.build import texts_of, write
from demo.measure import MAX_PIXELS
from demo.paths import local_path

NUM_TEXTS = 100_000
PICTURES = ("images", "augmented/background", "augmented/rotation")  # 1,574 + 400 + 400
SHARD_ROWS = 2_500
PAUSES_S = (2.0, 8.0)  # from a finished shard to the kill
POLL_S = 0.1


def distinct_texts(train: Path) -> Iterator[str]:
    """Yield the texts of training rows, each once."""
    seen: set[str] = set()
    with train.open(encoding="utf-8") as file:
        for line in file:
            for text in texts_of(json.loads(line)):
                if text not in seen:
                    seen.add(text)
                    yield text


def write_texts(train: Path, path: Path) -> int:
    """Write texts as items, and return how many there are."""
    texts = islice(distinct_texts(train), NUM_TEXTS)
    rows = [{"id": f"text-{number}", "text": text} for number, text in enumerate(texts)]
    write(path, rows)
    return len(rows)


def num_finished(vectors: Path) -> int:
    """Return how many shards of a run are finished, by its manifest."""
    manifest = vectors / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") - 1 if manifest.exists() else 0


def run_and_kill(command: list[str], vectors: Path) -> None:
    """Begin a run, and kill it some seconds after it has finished a shard."""
    finished = num_finished(vectors)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None and num_finished(vectors) <= finished:
            time.sleep(POLL_S)
        time.sleep(random.uniform(*PAUSES_S))
        run.kill()
    how = "killed" if run.returncode == -signal.SIGKILL else f"ended with status {run.returncode}"
    print(f"{how}: {finished} shards were finished before this run, {num_finished(vectors)} are now", flush=True)


def run_to_the_end(command: list[str]) -> dict[str, Any]:
    """Go on with a run until its end, and return its verified report."""
    done = subprocess.run([*command, "--verify"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: vlembed bulk ended with status {done.returncode}; it has said why")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> None:
    """Parse the command line, embed, print the counts."""
    parser = argparse.ArgumentParser(prog="python -m demo.bulk", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="a running server, as grpc://127.0.0.1:8001")
    parser.add_argument("--data", type=local_path, required=True, help="folder that `python -m demo.build` wrote")
    parser.add_argument("--output", type=local_path, required=True, help="a folder for texts.jsonl and vectors/")
    parser.add_argument("--kills", type=int, default=3, help="how often the run is killed (default: %(default)s)")
    arguments = parser.parse_args()
    if not (arguments.data / "train.jsonl").is_file():
        sys.exit(f"error: {arguments.data} has no train.jsonl. Make it: python -m demo.build --output {arguments.data}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    texts, vectors = arguments.output / "texts.jsonl", arguments.output / "vectors"
    num_texts = write_texts(arguments.data / "train.jsonl", texts)
    folders = [arguments.data / name for name in PICTURES]
    num_pictures = sum(1 for folder in folders for _ in folder.iterdir())
    inputs = [str(path) for path in (texts, *folders)]
    options = ["--url", arguments.url, "--max-pixels", str(MAX_PIXELS), "--shard-size", str(SHARD_ROWS)]
    command = [sys.executable, "-m", "vlembed", "bulk", *inputs, str(vectors), *options]
    print("+", *command, flush=True)
    for _ in range(arguments.kills):
        run_and_kill(command, vectors)
    report = run_to_the_end(command)
    print(f"in:  {num_texts:,} texts + {num_pictures:,} pictures = {num_texts + num_pictures:,} rows")
    print(f"out: {report['num_embedded']:,} vectors + {sum(report['errors'].values()):,} errors, every checksum right")
    if report["num_rows"] != num_texts + num_pictures:
        sys.exit(f"error: the report counts {report['num_rows']:,} rows")


if __name__ == "__main__":
    main()
