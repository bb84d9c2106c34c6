"""Measure the demonstration's checkpoint on every split of its data set: what it has learnt, and what it can guess.

    python -m demo.measure --url grpc://127.0.0.1:8001 --data DATA --output DIR

DATA is what `python -m demo.build` makes. Knows which files are asked for what; measuring is `finetune.evaluate`'s
business, which takes further arguments. Run in the training environment, against a running server.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from demo.paths import local_path
from demo.symbols import KINDS

MAX_PIXELS = 64 * 64  # as in training
TASKS = {  # queries and gallery
    "text to image, names seen": ("names_seen", "images"),
    "text to image, names held out": ("names_heldout", "images"),
    "text to image, keywords held out": ("keywords_heldout", "images"),
    "text to image, new languages": ("names_new_languages", "images"),
    "image to text, names seen": ("images", "names_seen"),
    "image to text, names held out": ("images_named", "names_to_find"),
    "name to name across languages, names seen": ("names_seen", "names"),
    "name to name across languages, names held out": ("names_heldout", "names"),
    **{f"image to image, {kind}": (f"images_{kind}", "images") for kind in KINDS},
}
COMPRESSED = "text to image, names held out"


def measure(url: str, data: Path, output: Path, *arguments: str) -> int:
    """Evaluate what `url` serves into `output`, and return the exit status of `finetune.evaluate`."""
    tasks = [
        f"--retrieval={name}={data / 'eval' / queries}.jsonl:{data / 'eval' / gallery}.jsonl"
        for name, (queries, gallery) in TASKS.items()
    ]
    command = ["--url", url, "--output", str(output), "--max-pixels", str(MAX_PIXELS), f"--compression={COMPRESSED}"]
    return subprocess.run([sys.executable, "-m", "finetune.evaluate", *command, *tasks, *arguments]).returncode


def main() -> int:
    """Parse the command line; what it does not know goes to finetune.evaluate."""
    parser = argparse.ArgumentParser(prog="python -m demo.measure", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="a running server, as grpc://127.0.0.1:8001")
    parser.add_argument("--data", type=local_path, required=True, help="folder that `python -m demo.build` wrote")
    parser.add_argument(
        "--output", type=local_path, required=True, help="folder for results.json, results.md, results.png"
    )
    options, further = parser.parse_known_args()
    if not (options.data / "eval").is_dir():
        sys.exit(f"error: {options.data} has no eval/. Make it: python -m demo.build --output {options.data}")
    return measure(options.url, options.data, options.output, *further)


if __name__ == "__main__":
    sys.exit(main())
