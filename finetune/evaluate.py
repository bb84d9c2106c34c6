"""The command: `python -m finetune.evaluate (--checkpoint C | --url URL) --output DIR`, and at least one task.

    --similarity NAME=PAIRS           correlation of cosines with scores
    --pairs NAME=PAIRS                pairs that mean the same, told from others by their cosine
    --retrieval NAME=QUERIES:GALLERY  search, in every language, across languages, and from text to image and back

Only puts together: `tasks` reads and has the formats, `served` and `in_process` embed, `scores` and `compression`
measure, `report` writes. Every distinct item is embedded once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vlembed
from finetune.compression import score_compression
from finetune.data import DataError
from finetune.in_process import CheckpointEncoder
from finetune.interrupts import interruptible
from finetune.model import CheckpointError, open_preprocessor
from finetune.paths import local_path
from finetune.report import write_report
from finetune.scores import score_pairs, score_retrieval, score_similarity
from finetune.served import TIMEOUT_S, ServedEncoder
from finetune.tasks import read_pairs, read_retrieval, read_similarity
from finetune.vectors import Encoder, VectorTable

PACKAGES = ("sentence-transformers", "transformers", "torch", "numpy")


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the tasks, embed, and score.

    Raises
    ------
    DataError
        A file, or an item of one, is bad.
    CheckpointError, VlembedError
        The checkpoint cannot be loaded, or the server cannot be reached or fails.
    """
    table, preprocessor = VectorTable(), None
    if arguments.checkpoint is not None:  # a server has its own
        preprocessor = open_preprocessor(arguments.checkpoint, max_pixels=arguments.max_pixels)
    similarity = [read_similarity(name, path, table, preprocessor) for name, (path,) in arguments.similarity]
    pairs = [read_pairs(name, path, table, preprocessor) for name, (path,) in arguments.pairs]
    retrieval = [
        read_retrieval(name, queries, gallery, table, preprocessor, query_instruction=arguments.query_instruction)
        for name, (queries, gallery) in arguments.retrieval
    ]
    encoder = _open_encoder(arguments)
    print(f"embedding {len(table)} items", file=sys.stderr)
    table.embed(encoder)
    tasks = [score_similarity(task, table) for task in similarity] + [score_pairs(task, table) for task in pairs]
    for task in retrieval:
        print(f"searching for {task.name}", file=sys.stderr)
        tasks.append(score_retrieval(task, table))
        if task.name in arguments.compression:
            tasks[-1]["compression"] = score_compression(task, table)
    return {
        "model": encoder.identity(),
        "settings": {"max_pixels": arguments.max_pixels, "query_instruction": arguments.query_instruction or None},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {package: version(package) for package in PACKAGES} | {"vlembed": vlembed.__version__},
        "items_embedded": len(table),
        "tasks": tasks,
    }


def _open_encoder(arguments: argparse.Namespace) -> Encoder:
    if arguments.url is not None:
        return ServedEncoder(arguments.url, max_pixels=arguments.max_pixels, timeout_s=arguments.timeout_s)
    return CheckpointEncoder(arguments.checkpoint, max_pixels=arguments.max_pixels)


def _commit() -> str | None:
    """Return the commit of this code, with -dirty if files have changed since; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _named_files(value: str, num_files: int) -> tuple[str, list[Path]]:
    name, _, files = value.partition("=")
    paths = [Path(file) for file in files.split(":")]
    if not name or not all(files.split(":")) or len(paths) != num_files or "://" in files:
        form = "NAME=" + ":".join(["FILE"] * num_files)
        raise argparse.ArgumentTypeError(f"{value!r} is not of the form {form}; no other colons. Rename files with one")
    return name, paths


def one_file(value: str) -> tuple[str, list[Path]]:
    """Parse NAME=FILE."""
    return _named_files(value, 1)


def two_files(value: str) -> tuple[str, list[Path]]:
    """Parse NAME=FILE:FILE."""
    return _named_files(value, 2)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.evaluate", description="Evaluate a checkpoint, or what a server serves."
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", help="folder or hub id of a Qwen3-VL(-Embedding), run in this process")
    model.add_argument("--url", help="a running server, as grpc://127.0.0.1:8001")
    parser.add_argument(
        "--output", type=local_path, required=True, help="folder for results.json, results.md, results.png"
    )
    tasks = parser.add_argument_group("tasks, each as often as you like").add_argument
    scored, labelled = "NAME=PAIRS", "scores of any scale"
    tasks("--similarity", type=one_file, action="append", default=[], metavar=scored, help=f"pairs with {labelled}")
    tasks("--pairs", type=one_file, action="append", default=[], metavar=scored, help="pairs with scores of 0 and 1")
    tasks(
        "--retrieval",
        type=two_files,
        action="append",
        default=[],
        metavar="NAME=QUERIES:GALLERY",
        help="rows with an id; a gallery row with an id of the query is relevant",
    )
    tasks(
        "--compression", action="append", default=[], metavar="NAME", help="a retrieval task to try smaller vectors on"
    )
    parser.add_argument(
        "--query-instruction", default="", help="of queries that have none; left out, the model's default"
    )
    parser.add_argument("--max-pixels", type=int, help="image budget, as the client's max_pixels")
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help="of a request to the server (%(default)g)")
    parsed = parser.parse_args(arguments)
    names = [name for name, _ in [*parsed.similarity, *parsed.pairs, *parsed.retrieval]]
    if not names:
        parser.error("no task. Pass --similarity, --pairs or --retrieval.")
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"two tasks have the name {twice[0]!r}. Give each its own.")
    if unknown := [name for name in parsed.compression if name not in dict(parsed.retrieval)]:
        parser.error(
            f"--compression {unknown[0]!r} is no --retrieval task. Name one of {sorted(dict(parsed.retrieval))}."
        )
    return parsed


def main() -> None:
    """Evaluate, write the report and print it."""
    arguments = parse()
    try:
        with interruptible(lambda: f"nothing was written into {arguments.output}."):
            results = evaluate(arguments)
        print(write_report(results, arguments.output), end="")
    except (CheckpointError, DataError, vlembed.VlembedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
