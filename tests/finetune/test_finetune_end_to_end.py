"""Checkpoint, training, export, server, client: what was learnt is what is served, on wordings that were never seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_PIXELS = "4096"
# Of each of demo/images: names to train on, and the same with articles that were never seen with them.
NAMES = {
    "bicycle": (["a bicycle", "bicycle", "ein Fahrrad", "vélo"], ["the bicycle", "das Fahrrad", "le vélo"]),
    "cat_face": (["a cat", "cat face", "Katze", "un chat"], ["the cat", "die Katze", "le chat"]),
    "dog": (["a dog", "dog", "ein Hund", "chien"], ["the dog", "der Hund", "le chien"]),
    "fish": (["a fish", "fish", "Fisch", "un poisson"], ["the fish", "der Fisch", "le poisson"]),
    "house": (["the house", "house", "das Haus", "maison"], ["a house", "ein Haus", "la maison"]),
    "red_apple": (["red apple", "the apple", "Apfel", "la pomme"], ["a red apple", "der Apfel", "une pomme"]),
    "rocket": (["the rocket", "rocket", "Rakete", "la fusée"], ["a rocket", "die Rakete", "une fusée"]),
    "tree": (["the tree", "tree", "der Baum", "arbre"], ["a tree", "ein Baum", "un arbre"]),
}


def image(name: str) -> str:
    return str(ROOT / f"demo/images/{name}.png")


def write(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.triton
def test_a_served_checkpoint_finds_more_after_training(
    served: Callable[[Path], str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    train = write(
        tmp_path / "train.jsonl",
        (
            {"anchor": text, "positive": {"image": image(name)}, "group": name}
            for name, (texts, _) in NAMES.items()
            for text in texts
        ),
    )
    queries = write(
        tmp_path / "queries.jsonl",
        ({"id": name, "text": text} for name, (_, texts) in NAMES.items() for text in texts),
    )
    gallery = write(tmp_path / "gallery.jsonl", ({"id": name, "image": image(name)} for name in NAMES))
    trained = tmp_path / "trained"
    run(
        "finetune", "--checkpoint", tiny_checkpoint, "--train", train, "--output", trained, "--language", "full",
        "--vision", "full", "--max-steps", 60, "--batch-size", 8, "--learning-rate", 1e-3, "--max-pixels", MAX_PIXELS,
    )  # fmt: skip

    found: dict[str, dict[str, float]] = {}
    for name, checkpoint in {"before": tiny_checkpoint, "after": trained}.items():
        task = ["--retrieval", f"held-out={queries}:{gallery}", "--max-pixels", MAX_PIXELS]
        run("finetune.evaluate", "--url", served(checkpoint), "--output", tmp_path / name, *task)
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        found[name] = results["tasks"][0]
    assert found["after"]["queries"] == sum(len(texts) for _, texts in NAMES.values())
    assert found["before"]["recall@1"] < 0.3  # one in eight by chance
    assert found["after"]["recall@1"] > 0.5
