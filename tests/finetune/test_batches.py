"""A run in which nothing can be learned is refused with the reason, and no other run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from finetune.batches import nothing_to_learn
from finetune.data import read_rows
from finetune.losses import LossOptions, build_loss
from finetune.model import load_model
from finetune.trainable import make_trainable
from finetune.training import Collator, TrainingError, TrainingOptions, fine_tune


def row(anchor: str, positive: str, *negatives: str, group: str = "") -> dict[str, Any]:
    return {"anchor": anchor, "positive": positive, "negatives": list(negatives), "group": group}


def scored(a: str, b: str, score: float) -> dict[str, Any]:
    return {"a": a, "b": b, "score": score}


def dataset(folder: Path, rows: list[Any]) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in rows), encoding="utf-8")
    return read_rows(path)[0]


TWO = [row("a", "b"), row("c", "d")]
NOTHING: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "one row": ([row("a", "b")], {}, "there is only one row"),
    "equal rows": ([row("a", "b")] * 5, {}, "all 5 rows are equal"),
    "equal rows of different groups": ([row("a", "b", group=f"{i}") for i in range(5)], {}, "all 5 rows are equal"),
    "equal pairs with different scores": ([scored("a", "b", 0), scored("a", "b", 1)], {"loss": "cosent"}, "all 2 rows"),
    "rows alone": (TWO, {"batch_size": 1}, "batch_size is 1"),
    "one anchor": ([row("a", f"{i}") for i in range(5)], {}, "one side is in every row"),
    "one positive": ([row(f"{i}", "b") for i in range(5)], {}, "one side is in every row"),
    "one group": ([row(f"{i}", f"p{i}", group="g") for i in range(5)], {}, "the groups leave no batch"),
    "groups of one positive": ([row(f"{i}", "b", group=f"{i}") for i in range(5)], {}, "the groups leave no batch"),
    "negatives that are the positive": ([row("a", "b", "b")], {}, "there is only one row"),
    "triplets of nothing": ([row("a", "b", "b"), row("c", "d", "d")], {"loss": "triplet"}, "every negative is the pos"),
    "one score": ([scored("a", "b", 0.5), scored("c", "d", 0.5)], {"loss": "cosent"}, r"every score is 0\.5"),
    "one scored pair": ([scored("a", "b", 0.5)], {"loss": "cosent"}, "every score is"),
    "one side of all pairs": ([scored("a", f"{i}", i) for i in range(4)], {"loss": "cosent"}, "one side is in every"),
}  # fmt: skip
SOMETHING: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "two rows": (TWO, {}),
    "one row with a negative": ([row("a", "b", "c")], {}),
    "a negative that is the positive beside one that is not": ([row("a", "b", "b", "c")], {"batch_size": 1}),
    "one anchor with negatives": ([row("a", f"{i}", "n") for i in range(5)], {}),
    "two groups": ([row(f"{i}", f"p{i}", group=f"{i % 2}") for i in range(5)], {}),
    "one triplet": ([row("a", "b", "c")], {"loss": "triplet", "batch_size": 1}),
    "two scores": ([scored("a", "b", 0), scored("c", "d", 1)], {"loss": "cosent"}),
    "sides that differ in the instruction": (
        [row("a", "b"), {"anchor": {"text": "a", "instruction": "Find."}, "positive": "d", "negatives": []}],
        {},
    ),
}


def describe(rows: Dataset, loss: Any = "infonce", batch_size: int = 4) -> str:
    return nothing_to_learn(rows, loss, batch_size)


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_refused_before_anything_is_written(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows, changed, reason = NOTHING[name]
    options = TrainingOptions(
        loss=LossOptions(changed.get("loss", "infonce")), batch_size=changed.get("batch_size", 4), max_steps=2, rank=4
    )
    with pytest.raises(TrainingError, match=f"^nothing can be learned: {reason}"):
        fine_tune(str(tiny_checkpoint), dataset(tmp_path, rows), None, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SOMETHING)
def test_something_is_let_through(name: str, tmp_path: Path) -> None:
    rows, changed = SOMETHING[name]
    assert describe(dataset(tmp_path, rows), **changed) == ""


@pytest.mark.parametrize("loss_name", ["infonce", "cached-infonce", "triplet", "cosent"])
def test_what_is_refused_has_no_gradient(loss_name: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One row is the batch that every refused run comes to; a row more, or a negative, is one that learns."""
    without, with_it = {
        "triplet": ([row("a", "b", "b")], [row("a", "b", "c")]),
        "cosent": ([scored("a", "b", 0.5)], [scored("a", "b", 0.5), scored("c", "d", 1)]),
    }.get(loss_name, ([row("a", "b")], TWO))
    gradients = []
    for rows in (without, with_it):
        model: Any = load_model(tiny_checkpoint)
        make_trainable(model[0], "full")
        loss = build_loss(model, LossOptions(loss_name))
        data = dataset(tmp_path, rows)
        batch = Collator(model[0].preprocess, valid_label_columns=["score"])([data[i] for i in range(len(data))])
        label = batch.pop("label", None)
        batch.pop("return_loss", None)
        features = [
            {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}
            for name in data.column_names
            if name not in ("score", "group")
        ]
        loss(features, label).backward()
        norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
        gradients.append(float(torch.stack(norms).sum()) if norms else 0.0)
    assert gradients[0] < 1e-4 < gradients[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0; it must be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 0.0, "embedding_learning_rate": 1e-3}, "learning_rate is"),  # which LoRA does not train
        ({"epochs": 0.0}, r"epochs is 0\.0"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"save_steps": 0}, "save_steps is 0"),
        ({"log_steps": 0}, "log_steps is 0"),
        ({"loss": LossOptions("cached-infonce", cached_batch_size=0)}, "cached_batch_size is 0"),
        ({"loss": LossOptions(temperature=float("inf"))}, "temperature is inf"),
        ({"loss": LossOptions(false_negative_margin=-2.0)}, r"false_negative_margin is -2\.0; nothing can be learned"),
        ({"loss": LossOptions("triplet", triplet_margin=-3.0)}, r"triplet_margin is -3\.0; nothing can be learned"),
    ],
)
def test_options_with_which_nothing_is_learned(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        fine_tune("none", dataset(tmp_path, TWO), None, tmp_path / "out", TrainingOptions(**changed))


def test_rows_that_changed_since_they_were_read_end_without_a_traceback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    long = dataset(tmp_path, [row("cat " * 9000, "b"), row("c", "d")])  # not checked
    options = TrainingOptions(max_steps=1, batch_size=2, rank=4)
    with pytest.raises(TrainingError, match=r"a batch cannot be preprocessed \(item \d of 2: .*tokens"):
        fine_tune(str(tiny_checkpoint), long, None, tmp_path / "out", options)
