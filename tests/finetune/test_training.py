"""The run: what it learns, what it writes, and that a kill changes nothing."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from finetune.__main__ import main
from finetune.data import read_rows
from finetune.losses import LossOptions
from finetune.model import CheckpointError, load_model
from finetune.training import COMPLETE, Collator, GroupBatchSampler, TrainingError, TrainingOptions, fine_tune
from tests.random_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "demo/images"
NAMES = {
    "bicycle": "ein Fahrrad", "cat_face": "cat face", "dog": "a dog", "fish": "魚",
    "house": "maison", "red_apple": "red apple", "rocket": "rocket", "tree": "árbol",
}  # fmt: skip
MAX_PIXELS = 4096
LEARNING_RATE = 3e-3  # of random weights
KILL_TIMEOUT_S = 120


def picture(name: str) -> dict[str, str]:
    return {"image": str(IMAGES / f"{name}.png")}


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(*, grouped: bool = True) -> list[dict[str, Any]]:
    """Return names with pictures and, two of a group, with longer names."""
    rows: list[dict[str, Any]] = []
    for name, text in NAMES.items():
        for positive in (picture(name), f"{text} ({name})"):
            rows.append({"anchor": text, "positive": positive} | ({"group": name} if grouped else {}))
    return rows


def dataset(folder: Path, rows: Sequence[object]) -> Dataset:
    return read_rows(write_rows(folder / "rows.jsonl", rows))[0]


def options(*, loss: LossOptions | None = None, **changed: Any) -> TrainingOptions:
    settings: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "learning_rate": LEARNING_RATE, "rank": 4, "alpha": 4}
    return TrainingOptions(loss=loss or LossOptions(), max_pixels=MAX_PIXELS, **{**settings, **changed})


def log(output: Path) -> list[tuple[int, str, float]]:
    """Return step, name and value of every line of the log."""
    with (output / "training/log.csv").open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
    main()


def weights(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["infonce", "cached-infonce"])
def test_a_small_set_is_learnt_by_heart(name: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = dataset(tmp_path, PICTURES)
    loss = LossOptions(name, cached_batch_size=4)
    fine_tune(str(tiny_checkpoint), rows, None, tmp_path / "out", options(loss=loss, max_steps=30, batch_size=8))
    recall = {}
    for checkpoint in (tiny_checkpoint, tmp_path / "out"):
        model: Any = load_model(checkpoint, max_pixels=MAX_PIXELS)
        texts, pictures = model.encode(list(NAMES.values())), model.encode([picture(name) for name in NAMES])
        recall[checkpoint] = ((texts @ pictures.T).argmax(1) == range(len(NAMES))).mean()
    assert recall[tiny_checkpoint] < 0.5
    assert recall[tmp_path / "out"] == 1
    losses = [value for _, name, value in log(tmp_path / "out") if name == "loss"]
    assert losses[-1] < losses[0] / 10


def test_the_same_seed_gives_the_same_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = dataset(tmp_path, pairs())
    for name, seed in {"first": 1, "second": 1, "third": 2}.items():
        fine_tune(str(tiny_checkpoint), rows, None, tmp_path / name, options(seed=seed))
    assert weights(tmp_path / "first") == weights(tmp_path / "second") != weights(tmp_path / "third")


def arguments(checkpoint: Path, rows: Path, output: Path, steps: int) -> list[object]:
    return [
        "--checkpoint", checkpoint, "--train", rows, "--eval", rows, "--output", output, "--max-steps", steps,
        "--save-steps", 3, "--log-steps", 1, "--batch-size", 4, "--max-pixels", MAX_PIXELS, "--rank", 4, "--alpha", 4,
        "--learning-rate", LEARNING_RATE, "--vision", "merger",
    ]  # fmt: skip


def killed(command: list[object], output: Path, num_snapshots: int) -> None:
    """Start a run, and kill it at some moment after a number of snapshots."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *map(str, command)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    complete = output / f"training/checkpoint-{3 * num_snapshots}" / COMPLETE
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while not complete.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    assert process.wait() < 0  # it had not ended by itself


@pytest.mark.parametrize(("num_snapshots", "grouped"), [(1, True), (2, False)])
def test_a_killed_run_resumes_as_if_nothing_had_happened(
    num_snapshots: int, grouped: bool, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    steps = 40  # several epochs, and more than are done before the kill
    rows = write_rows(tmp_path / "rows.jsonl", pairs(grouped=grouped))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_cli(monkeypatch, *arguments(tiny_checkpoint, rows, whole, steps))

    command = arguments(tiny_checkpoint, rows, resumed, steps)
    killed(command, resumed, num_snapshots)
    assert not (resumed / "config.json").exists()
    half_written = resumed / f"training/checkpoint-{steps - 1}"
    half_written.mkdir()
    (half_written / "trained.safetensors").write_bytes(b"half of")
    with (resumed / "training/log.csv").open("a", encoding="utf-8") as file:
        file.write(f"{steps - 1},1.0,loss,5\n{steps},1.0,lo")  # what the killed run had come to
    run_cli(monkeypatch, *command, "--resume")

    assert weights(resumed) == weights(whole)
    timings = ("runtime", "per_second", "train_loss", "total_flos")
    ours, theirs = ([line for line in log(path) if not line[1].endswith(timings)] for path in (resumed, whole))
    assert ours == theirs
    assert [step for step, name, _ in ours if name == "loss"] == list(range(1, steps + 1))
    assert not list((resumed / "training").glob("checkpoint-*"))


@pytest.fixture
def interrupted(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of a run of two steps that ended while it wrote the checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr("finetune.training.merge_adapter", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            fine_tune(str(tiny_checkpoint), dataset(tmp_path, pairs()), None, tmp_path / "out", options())
    (tmp_path / "out/config.json").write_text("{}", encoding="utf-8")  # the first file of a checkpoint
    return tmp_path / "out"


def test_a_run_killed_at_its_very_end_resumes(interrupted: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    fine_tune(str(tiny_checkpoint), dataset(tmp_path, pairs()), None, interrupted, options(), resume=True)
    fine_tune(str(tiny_checkpoint), dataset(tmp_path, pairs()), None, tmp_path / "whole", options())
    assert weights(interrupted) == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 1.0}, "learning_rate was 0.003, is 1.0"),
        ({"loss": LossOptions(temperature=0.5), "seed": 3}, "loss was .*0.02.*, is .*0.5.*; seed was 0, is 3"),
    ],
)
def test_a_resume_with_other_options_is_refused(
    changed: dict[str, Any], named: str, interrupted: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = dataset(tmp_path, pairs())
    with pytest.raises(TrainingError, match=f"had other options: {named}. Resume with the same ones."):
        fine_tune(str(tiny_checkpoint), rows, None, interrupted, options(**changed), resume=True)


def test_a_resume_with_other_rows_is_refused(interrupted: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = pairs()
    rows[3]["anchor"] += "!"
    with pytest.raises(TrainingError, match="rows_sha256 was"):
        fine_tune(str(tiny_checkpoint), dataset(tmp_path, rows), None, interrupted, options(), resume=True)


def test_a_resume_of_older_options_says_what_is_new(interrupted: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = interrupted / "training/options.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    del before["beta2"]
    path.write_text(json.dumps(before), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"beta2 was None, is 0\.98"):
        fine_tune(str(tiny_checkpoint), dataset(tmp_path, pairs()), None, interrupted, options(), resume=True)


def test_outputs_that_hold_something_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows, output = dataset(tmp_path, pairs()), tmp_path / "out"
    with pytest.raises(TrainingError, match="is missing; there is no run to resume"):
        fine_tune(str(tiny_checkpoint), rows, None, output, options(), resume=True)
    fine_tune(str(tiny_checkpoint), rows, None, output, options())
    before = weights(output)
    with pytest.raises(TrainingError, match="is not empty"):
        fine_tune(str(tiny_checkpoint), rows, None, output, options())
    with pytest.raises(TrainingError, match="holds a finished checkpoint"):
        fine_tune(str(tiny_checkpoint), rows, None, output, options(), resume=True)
    assert weights(output) == before


def test_a_checkpoint_that_cannot_be_loaded_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        fine_tune(str(tmp_path / "none"), dataset(tmp_path, pairs()), None, tmp_path / "out", options())
    assert not (tmp_path / "out").exists()


TEXT_PAIR = {"anchor": "a", "positive": "b"}
TRIPLET = {**TEXT_PAIR, "negatives": ["c"]}
SCORED = {"a": "a", "b": "b", "score": 0.5}


@pytest.mark.parametrize(
    ("loss", "row", "message"),
    [
        ("cosent", TEXT_PAIR, "'cosent' takes rows of scores; these have anchor and positive. Choose 'infonce'"),
        (
            "infonce",
            SCORED,
            "'infonce' takes rows of anchors and positives; these have a, b and score. Choose 'cosent'",
        ),
        ("cached-infonce", SCORED, "'cached-infonce' takes rows of anchors and positives"),
        ("triplet", SCORED, "'triplet' takes rows of anchors and positives"),
        ("triplet", TEXT_PAIR, "takes one negative a row; these have 0. Keep one, find some with finetune.mine"),
        ("triplet", {**TEXT_PAIR, "negatives": ["c", "d"]}, "takes one negative a row; these have 2"),
    ],
)
@pytest.mark.parametrize("as_evaluation", [False, True])
def test_a_loss_that_does_not_fit_the_rows_is_refused_before_the_model_loads(
    loss: Any, row: dict[str, Any], message: str, as_evaluation: bool, tmp_path: Path
) -> None:
    good = {"cosent": SCORED, "triplet": TRIPLET}.get(loss, TEXT_PAIR)
    bad_rows = dataset(tmp_path, [row, row])
    train, evaluation = (dataset(tmp_path, [good, good]), bad_rows) if as_evaluation else (bad_rows, None)
    with pytest.raises(TrainingError, match=message):
        fine_tune("no checkpoint", train, evaluation, tmp_path / "out", options(loss=LossOptions(loss)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be more than 0"),
        ({"loss": LossOptions(temperature=0)}, "temperature is 0; it must be more than 0"),
        ({"loss": LossOptions(matryoshka=(64, 0))}, "matryoshka is 0; it must be more than 0"),
        ({"loss": LossOptions(matryoshka=(64, 256))}, "matryoshka names 256 dimensions; the vectors of .* have 128"),
        ({"language": "frozen"}, "language and vision are 'frozen', so nothing would train"),
    ],
)
def test_options_that_cannot_be_are_refused(
    changed: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        fine_tune(str(tiny_checkpoint), dataset(tmp_path, pairs()), None, tmp_path / "out", options(**changed))
    assert not (tmp_path / "out").exists()


def test_a_run_of_the_vision_tower_without_images_is_refused(tmp_path: Path) -> None:
    run = options(language="frozen", vision="full")
    with pytest.raises(TrainingError, match="no row has an image, so nothing would train"):
        fine_tune("none", dataset(tmp_path, [TEXT_PAIR, TEXT_PAIR]), None, tmp_path / "out", run)


def test_an_adapter_without_lora_is_refused(tmp_path: Path) -> None:
    rows = dataset(tmp_path, pairs())
    with pytest.raises(TrainingError, match="language is 'full', which has no adapter to keep"):
        fine_tune("none", rows, None, tmp_path / "out", options(language="full"), keep_adapter=True)


def sampled(rows: Dataset, batch_size: int, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    sampler = GroupBatchSampler(rows, batch_size=batch_size, drop_last=False, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.fixture
def mixed_rows(tmp_path: Path) -> Dataset:
    """Return groups of one to five rows, rows without a group, and three kinds of rows."""
    kinds: list[tuple[Any, Any]] = [
        ("text", picture("dog")),
        ("text", "another"),
        (picture("dog"), {"text": "both", **picture("dog")}),
    ]
    rows = [
        {"anchor": anchor, "positive": positive, "group": f"{size} {number}"}
        for anchor, positive in kinds
        for size in range(1, 6)
        for number in range(3)
        for _ in range(size)
    ]
    return dataset(tmp_path, [*rows, *[{"anchor": "alone", "positive": "in its group"}] * 9])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_batches_by_group(batch_size: int, mixed_rows: Dataset) -> None:
    batches = sampled(mixed_rows, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(mixed_rows)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    for batch in batches:
        rows = mixed_rows.select(batch)
        groups = Counter(group for group in rows["group"] if group)
        assert not groups or max(groups.values()) == 1
        kinds = {
            tuple(bool(side[part]) for side in (row["anchor"], row["positive"]) for part in ("text", "image"))
            for row in rows
        }
        assert len(kinds) == 1


def test_batches_of_a_kind_are_full(mixed_rows: Dataset) -> None:
    sizes = Counter(map(len, sampled(mixed_rows, 4)))
    assert sizes[4] + sizes[3] == sizes.total()  # 45, 54 and 45 rows in fours: none is left with less


def test_a_group_larger_than_an_epoch_has_batches_is_spread_over_more_of_them(tmp_path: Path) -> None:
    rows = [{"anchor": f"{i}", "positive": "p", "group": "g" if i < 6 else f"{i}"} for i in range(8)]
    batches = sampled(dataset(tmp_path, rows), 4)
    assert len(batches) == 6
    assert all(sum(row < 6 for row in batch) == 1 for batch in batches)


def test_the_order_depends_on_seed_and_epoch_alone(mixed_rows: Dataset) -> None:
    first = sampled(mixed_rows, 4)
    assert first == sampled(mixed_rows, 4)
    assert first != sampled(mixed_rows, 4, epoch=1)
    assert first != sampled(mixed_rows, 4, seed=7)
    assert sampled(mixed_rows, 4, epoch=1) == sampled(mixed_rows, 4, epoch=1)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in sampled(mixed_rows, 4, epoch=1)}


def test_rows_without_groups_come_in_batches_without_duplicates(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    original = Collator.__call__

    def spy(self: Collator, rows: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append([row["anchor"]["text"] for row in rows])
        return original(self, rows)

    monkeypatch.setattr(Collator, "__call__", spy)
    rows = dataset(tmp_path, pairs(grouped=False))
    assert "group" not in rows.column_names
    fine_tune(str(tiny_checkpoint), rows, None, tmp_path / "out", options(max_steps=-1, epochs=2))
    assert sum(map(len, seen)) == 2 * len(rows)  # every row, once an epoch
    assert all(len(set(batch)) == len(batch) for batch in seen)


SCORED_ROWS = [{"a": text, "b": picture(name), "score": index / 7} for index, (name, text) in enumerate(NAMES.items())]
PICTURES = [{"anchor": text, "positive": picture(name)} for name, text in NAMES.items()]
TRIPLETS = [
    {"anchor": text, "positive": picture(name), "negatives": ["something else"], "group": name}
    for name, text in NAMES.items()
]


@pytest.mark.parametrize(
    ("rows", "loss", "changed"),
    [
        pytest.param(SCORED_ROWS, LossOptions("cosent"), {}, id="cosent"),
        pytest.param(TRIPLETS, LossOptions("triplet"), {}, id="triplet"),
        pytest.param(TRIPLETS, LossOptions(false_negative_margin=0.1), {}, id="hard negatives and a margin"),
        pytest.param(pairs(), LossOptions("cached-infonce", matryoshka=(64, 32)), {}, id="cached and matryoshka"),
        pytest.param(pairs(), LossOptions(), {"bf16": True}, id="bf16"),
        pytest.param(PICTURES, LossOptions(), {"gradient_checkpointing": True, "vision": "full"}, id="checkpointing"),
        pytest.param(PICTURES, LossOptions(), {"language": "full", "vision": "full"}, id="all"),
        pytest.param(PICTURES, LossOptions(), {"language": "frozen", "vision": "merger"}, id="merger"),
    ],
)
def test_every_kind_of_run_trains_what_it_should(
    rows: list[Any], loss: LossOptions, changed: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = dataset(tmp_path, rows)
    run = options(loss=loss, save_steps=2, log_steps=1, warmup=0.0, **changed)
    fine_tune(str(tiny_checkpoint), data, data, tmp_path / "out", run)
    values = {name: value for _, name, value in log(tmp_path / "out")}
    assert values["loss"] > 0 and values["eval_loss"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    projections = r"language_model.*(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    language = {"lora": projections, "full": "language_model", "frozen": "^$"}[run.language]
    vision = {"frozen": "^$", "merger": r"visual\..*merger", "full": "visual"}[run.vision]
    expected = {name for name in before if re.search(f"{language}|{vision}", name)}
    assert moved <= expected
    assert len(moved) > 0.9 * len(expected)


def test_texts_alone_do_not_stop_a_run_of_the_vision_tower(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = options(language="frozen", vision="merger", max_steps=4)  # two batches of texts, two of pictures
    fine_tune(str(tiny_checkpoint), dataset(tmp_path, pairs()), None, tmp_path / "out", run)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("merger" in name for name in moved)


def test_gradient_checkpointing_changes_next_to_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = dataset(tmp_path, pairs())
    for name in ("plain", "checkpointed"):
        run = options(gradient_checkpointing=name == "checkpointed", log_steps=1)
        fine_tune(str(tiny_checkpoint), rows, None, tmp_path / name, run)
    losses = [[value for _, name, value in log(tmp_path / run) if name == "loss"] for run in ("plain", "checkpointed")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_bf16_weights_in_and_out(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "bf16", "tiny", dtype=torch.bfloat16)
    fine_tune(str(checkpoint), dataset(tmp_path, pairs()), None, tmp_path / "out", options(bf16=True))
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_evaluation_is_logged_with_every_snapshot(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = dataset(tmp_path, pairs())
    fine_tune(str(tiny_checkpoint), rows, rows, tmp_path / "out", options(max_steps=6, save_steps=2, log_steps=3))
    lines = log(tmp_path / "out")
    assert [step for step, name, _ in lines if name == "eval_loss"] == [2, 4, 6]
    assert [step for step, name, _ in lines if name == "loss"] == [3, 6]


def test_the_command_writes_a_plain_checkpoint_and_an_adapter(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pairs())
    files = ["--checkpoint", tiny_checkpoint, "--train", rows, "--output", tmp_path / "out"]
    run_cli(monkeypatch, *files, "--max-steps", 1, "--batch-size", 4, "--max-pixels", MAX_PIXELS, "--adapter")
    printed = capsys.readouterr().out
    assert f"{rows}: 16 rows\n" in printed and printed.endswith(f"wrote {tmp_path / 'out'}\n")
    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"adapter", "training"}
    adapter = {path.name for path in (tmp_path / "out/adapter").iterdir()}
    assert adapter >= {"adapter_config.json", "adapter_model.safetensors"}
    training = {path.name for path in (tmp_path / "out/training").iterdir()}
    assert training == {"complete", "log.csv", "options.json", "tensorboard"}


BAD_ROWS = [{"anchor": "no positive"}, *pairs(), {"anchor": "a", "positive": {"image": "none.png"}}]


def test_bad_rows_are_refused_by_the_command(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", BAD_ROWS)
    with pytest.raises(SystemExit, match=r"error: .*2 of 18 rows are bad") as error:
        run_cli(monkeypatch, "--checkpoint", tiny_checkpoint, "--train", rows, "--output", tmp_path / "out")
    assert "rows.jsonl:1: KEY_MISSING" in str(error.value) and "rows.jsonl:18: " in str(error.value)
    assert not (tmp_path / "out").exists()


def test_skipped_rows_are_listed_by_the_command(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", BAD_ROWS)
    files = ["--checkpoint", tiny_checkpoint, "--train", rows, "--output", tmp_path / "out"]
    run_cli(monkeypatch, *files, "--max-steps", 1, "--batch-size", 4, "--max-pixels", MAX_PIXELS, "--on-error", "skip")
    printed = capsys.readouterr().out
    assert f"{rows}: 16 rows, 2 left out:\n{rows}:1: KEY_MISSING" in printed
    assert f"\n{rows}:18: " in printed


def test_errors_of_the_command_are_one_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pairs())
    files = ["--train", rows, "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"^error: checkpoint .* is neither a folder nor"):
        run_cli(monkeypatch, *files, "--checkpoint", tmp_path / "none")
    with pytest.raises(SystemExit, match=r"^error: loss 'cosent' takes rows of scores"):
        run_cli(monkeypatch, *files, "--checkpoint", tiny_checkpoint, "--loss", "cosent")


def test_help() -> None:
    done = subprocess.run([sys.executable, "-m", "finetune", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for field in TrainingOptions.__dataclass_fields__.keys() | {"temperature", "matryoshka"}:
        assert f"--{field.replace('_', '-')}" in done.stdout
