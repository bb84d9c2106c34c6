"""Adapt the demonstration's checkpoint to a language that it never saw, and print how much more it then finds.

    python -m demo.adapt --output DIR [--language uk]

Makes the language's data set, trains LoRA adapters on it, and exports, serves and measures the checkpoint as it was and
as it has become, on names held out of that training. Only calls what a user would. Run in the training environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.build import HELD_OUT, BuildError, build
from demo.measure import MAX_PIXELS
from demo.paths import local_path

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "demo/vlembed-emoji"
FINETUNE = {
    "--max-pixels": str(MAX_PIXELS),
    "--max-steps": "100",
    "--batch-size": "256",
    "--learning-rate": "2e-3",
    "--temperature": "0.05",
    "--log-steps": "20",
    "--save-steps": "100",
}
METRICS = ("recall@1", "recall@5", "recall@10")


class StepError(Exception):
    """A step failed; it has said why."""


def run(*command: str | Path) -> None:
    """Run a step, and show what it does."""
    print("+", *command, flush=True)
    if subprocess.run(list(map(str, command)), cwd=ROOT).returncode:
        raise StepError(f"{command[0]} failed, as it says above")


@contextmanager
def serving(repository: Path) -> Iterator[str]:
    """Serve a model repository on free ports, and give the URL."""
    ports = [word for endpoint in ("http", "grpc", "metrics", "health") for word in (f"--{endpoint}-port", "0")]
    command = [str(ROOT / "scripts/serve"), "--repository", str(repository), *ports]
    with (
        repository.with_suffix(".log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            ready = server.stdout.readline().split() if server.stdout else []
            if not ready:
                raise StepError(f"the server did not start; {log.name} says why")
            yield ready[2]
        finally:
            server.terminate()


def adapt(output: Path, language: str) -> dict[str, dict[str, float]]:
    """Return the metrics before and after.

    Raises
    ------
    BuildError, StepError
        A step failed.
    """
    data, adapted = output / "data", output / f"vlembed-emoji-{language}"
    build(data, trained=[language], new=[])
    options = [word for option in FINETUNE.items() for word in option]
    files: list[str | Path] = ["--checkpoint", CHECKPOINT, "--train", data / "train.jsonl", "--output", adapted]
    run(sys.executable, "-m", "finetune", *files, *options)
    metrics = {}
    for name, checkpoint in {"before": CHECKPOINT, "after": adapted}.items():
        repository = output / f"{name}-repository"
        run(ROOT / "scripts/export", "--checkpoint", checkpoint, "--output", repository)
        with serving(repository) as url:
            task = f"--retrieval=names={data}/eval/names_heldout.jsonl:{data}/eval/images.jsonl"
            run(
                sys.executable, "-m", "finetune.evaluate", "--url", url, "--output", output / name, task,
                "--max-pixels", str(MAX_PIXELS),
            )  # fmt: skip
        results = json.loads((output / name / "results.json").read_text(encoding="utf-8"))
        metrics[name] = {metric: results["tasks"][0][metric] for metric in METRICS}
        metrics[name]["names"] = results["tasks"][0]["queries"]
    return metrics


def main() -> None:
    """Parse the command line, adapt, print."""
    parser = argparse.ArgumentParser(prog="python -m demo.adapt", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=local_path, required=True, help="a new or empty folder for all that is made")
    parser.add_argument("--language", default=HELD_OUT[0], help="its code in CLDR (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.output.exists() and any(arguments.output.iterdir()):
        sys.exit(f"error: {arguments.output} is not empty, and nothing is overwritten. Remove it or name another.")
    try:
        metrics = adapt(arguments.output.resolve(), arguments.language)
    except (BuildError, StepError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # the step that it was in has said so
        sys.exit(130)
    print(f"\npictures found by {metrics['before']['names']} names in {arguments.language!r} that were never trained")
    print(f"{'':8}" + "".join(f"{metric:>12}" for metric in METRICS))
    for name, found in metrics.items():
        print(f"{name:8}" + "".join(f"{found[metric]:12.3f}" for metric in METRICS))


if __name__ == "__main__":
    main()
