"""Negatives are those of an exhaustive search, and no row is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

import finetune.mine
from finetune.data import Row, parse_rows, read_rows, read_sides
from finetune.mine import MiningError, MiningOptions, main, mine, write_rows
from finetune.model import load_model
from finetune.sides import Side
from tests.random_checkpoint import write_checkpoint
from tests.samples import encode, image

Vector: TypeAlias = Callable[[Side], npt.NDArray[np.float64]]

ROWS: list[dict[str, Any]] = [
    {"anchor": "a cat", "positive": {"image": "0.png"}, "group": "cat"},
    {"anchor": {"text": "eine Katze", "instruction": "Find it."}, "positive": {"image": "1.png"}, "group": "cat"},
    {"anchor": "a dog", "positive": {"image": "2.png", "text": "wuff"}},
    {"anchor": {"text": "a dog", "instruction": "Find it."}, "positive": "un chien"},  # the same anchor
    {"anchor": {"image": "3.png"}, "positive": "a bird on a tree"},
    {"anchor": "a bird on a tree", "positive": {"image": "3.png"}},  # both ways
    {"anchor": {"image": "4.png", "text": "which?"}, "positive": {"image": "5.png"}, "group": "fish"},
    {"anchor": "鱼", "positive": "a fish", "group": "fish"},
    {"anchor": "a red sofa", "positive": {"text": "un chien", "instruction": "Other."}},  # a positive twice
    {"anchor": "the Eiffel Tower", "positive": "a tower of iron"},
]
CORPUS = ["a dog", "a cow", {"image": "6.png"}, {"image": "0.png"}, {"text": "a cow", "instruction": "Other."}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random-tiny", "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SentenceTransformer:
    """Load it."""
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows with images, and a corpus."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(7):
        (folder / f"{i}.png").write_bytes(encode(image(64 + 8 * i, 64, seed=i)))
    write(folder / "corpus.jsonl", CORPUS)
    return write(folder / "pairs.jsonl", ROWS)


@pytest.fixture(scope="module")
def vector(model: SentenceTransformer) -> Vector:
    """Return what encodes a side alone, once."""
    vectors: dict[tuple[str, ...], npt.NDArray[np.float64]] = {}

    def encode_once(side: Side) -> npt.NDArray[np.float64]:
        key = (*content(side), side["instruction"])
        if key not in vectors:
            vectors[key] = np.asarray(model.encode([side], show_progress_bar=False)[0], np.float64)
        return vectors[key]

    return encode_once


def write(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def content(side: Side) -> tuple[str, str]:
    return side["text"], side["image"]


def exhaustive(
    rows: list[Row], corpus: list[Side], vector: Vector, options: MiningOptions
) -> list[list[tuple[str, str]]]:
    """Compare every anchor with every candidate, one by one; contents of all allowed, nearest first."""
    found = []
    for row in rows:
        anchor, positive = row.sides
        positive_score = float(vector(anchor) @ vector(positive))
        never = {content(anchor)}
        for other in rows:
            if content(other.sides[0]) == content(anchor) or (row.group and other.group == row.group):
                never |= {content(side) for side in other.sides}
        scores = {}
        for side in [*(other.sides[1] for other in rows), *corpus]:
            if content(side) not in never and content(side) not in scores:
                scores[content(side)] = float(vector(anchor) @ vector(side))
        nearest = sorted(scores, key=lambda key: -scores[key])[options.range_min : options.range_max]
        if options.max_score is not None:
            nearest = [key for key in nearest if scores[key] <= options.max_score]
        if options.absolute_margin is not None:
            nearest = [key for key in nearest if scores[key] <= positive_score - options.absolute_margin]
        if options.relative_margin is not None:
            limit = positive_score - abs(positive_score) * options.relative_margin
            nearest = [key for key in nearest if scores[key] <= limit]
        found.append(nearest)
    return found


OPTIONS = [
    MiningOptions(),
    MiningOptions(num_negatives=5, range_min=2, range_max=7),
    MiningOptions(num_negatives=2, absolute_margin=0.01),
    MiningOptions(num_negatives=2, relative_margin=0.05),
    MiningOptions(num_negatives=2, relative_margin=-0.05, absolute_margin=-0.02, range_max=6),
    MiningOptions(num_negatives=4, max_score=0.7, range_min=1),
    MiningOptions(num_negatives=50),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(OPTIONS.index(options)))
def test_against_exhaustive_search(
    data: Path, model: SentenceTransformer, vector: Vector, options: MiningOptions
) -> None:
    rows, _ = parse_rows(data)
    corpus, _ = read_sides(data.with_name("corpus.jsonl"))
    ours = [[content(side) for side in found] for found in mine(rows, corpus, model, options, batch_size=4)]
    theirs = exhaustive(rows, corpus, vector, options)
    assert ours == [nearest[: options.num_negatives] for nearest in theirs]
    assert any(path for found in ours for _, path in found)  # images are found, too
    assert any(text for found in ours for text, _ in found)


def test_a_search_in_parts(data: Path, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = parse_rows(data)
    theirs = mine(rows, [], model, OPTIONS[3], batch_size=4)
    monkeypatch.setattr(finetune.mine, "MAX_SCORES", 30)  # three rows of nine candidates
    assert mine(rows, [], model, OPTIONS[3], batch_size=4) == theirs


def test_against_sentence_transformers(tmp_path: Path, model: SentenceTransformer) -> None:
    """Where anchors are all different, and so are groups, its rules are ours."""
    texts = ["a cat", "ein Hund", "un pájaro", "鱼", "a red sofa", "Wasser", "the Eiffel Tower", "🚀", "one", "two and"]
    pairs = [{"anchor": text, "positive": f"{text}, {i}"} for i, text in enumerate(texts)]
    theirs = mine_hard_negatives(
        Dataset.from_list(pairs), model, num_negatives=2, range_max=9, absolute_margin=0.1, output_format="n-tuple",
        verbose=False,
    )  # fmt: skip
    rows, _ = parse_rows(write(tmp_path / "texts.jsonl", pairs))
    ours = mine(rows, [], model, MiningOptions(num_negatives=2, range_max=9, absolute_margin=0.1), batch_size=32)
    full = [[row.sides[0], *negatives] for row, negatives in zip(rows, ours, strict=True) if len(negatives) == 2]
    assert [[side["text"] for side in sides] for sides in full] == [
        [row["anchor"], row["negative_1"], row["negative_2"]] for row in theirs
    ]
    assert 0 < len(theirs) < len(rows)


def test_random_sampling(data: Path, model: SentenceTransformer) -> None:
    rows, _ = parse_rows(data)

    def negatives(seed: int) -> list[list[Side]]:
        options = MiningOptions(num_negatives=2, range_min=1, range_max=6, sampling="random", seed=seed)
        return mine(rows, [], model, options, batch_size=32)

    allowed = mine(rows, [], model, MiningOptions(num_negatives=5, range_min=1, range_max=6), batch_size=32)
    draws = [negatives(seed) for seed in range(8)]
    assert negatives(0) == draws[0]
    assert any(draw != draws[0] for draw in draws)
    for draw in draws:
        for drawn, window in zip(draw, allowed, strict=True):
            assert drawn == [side for side in window if side in drawn]  # in their order, each once
            assert len(drawn) == 2


def run(checkpoint: Path, data: Path, output: Path, *arguments: str) -> None:
    main(["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output), *arguments])


def test_command(data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new/mined.jsonl"
    run(checkpoint, data, output, "--num-negatives", "2", "--corpus", str(data.with_name("corpus.jsonl")))
    assert capsys.readouterr().out == f"{data.with_name('corpus.jsonl')}: 5 rows\n{data}: 10 rows\nwrote {output}\n"
    before, _ = read_rows(data)
    after, _ = read_rows(output)
    assert after.column_names == ["anchor", "positive", "negative_1", "negative_2", "group"]
    assert after.select_columns(before.column_names).to_list() == before.to_list()
    lines = output.read_text(encoding="utf-8").splitlines()
    assert "鱼" in lines[7]
    assert json.loads(lines[0])["anchor"] == "a cat"
    assert json.loads(lines[0])["positive"] == {"image": os.path.relpath(data.with_name("0.png"), output.parent)}
    assert list(output.parent.iterdir()) == [output]


def test_rows_with_too_few_negatives_are_told_of(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = {"anchor": "a cat", "positive": "cats", "group": "fish"}
    data = data.with_name("more.jsonl")
    data.write_text("\n".join([*map(json.dumps, ROWS), "", "bad", json.dumps(last)]), encoding="utf-8")
    output = tmp_path / "mined.jsonl"
    arguments = ("--num-negatives", "8", "--on-error")  # of ten candidates; anchor and group of the last rule out four
    with pytest.raises(SystemExit, match=r"more.jsonl:12: NOT_JSON"):
        run(checkpoint, data, output, *arguments, "raise")
    with pytest.raises(SystemExit, match=r"13: NEGATIVES_TOO_FEW 0 of 1 negatives"):
        run(checkpoint, data, output, "--max-score", "-1", "--num-negatives", "1", "--on-error", "skip")
    assert not output.exists()
    run(checkpoint, data, output, *arguments, "skip")
    mined = parse_rows(output)[0]
    told = capsys.readouterr().out
    assert f"{data}: {len(mined)} rows, {12 - len(mined)} left out:\n" in told
    assert f"{data}:13: NEGATIVES_TOO_FEW 6 of 8 negatives are left. " in told
    assert told.index(f"{data}:1: ") < told.index(f"{data}:12: NOT_JSON") < told.index(f"{data}:13: ")
    assert told.count("NEGATIVES_TOO_FEW") + told.count("NOT_JSON") == 12 - len(mined)
    assert 0 < len(mined) < 10


def test_refusals_come_before_the_model_is_loaded(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    there = tmp_path / "there.jsonl"
    there.write_text("precious", encoding="utf-8")
    mined = write(tmp_path / "mined.jsonl", [{"anchor": "a", "positive": "b", "negatives": ["c"]}])
    scored = write(tmp_path / "scored.jsonl", [{"a": "a", "b": "b", "score": 1}])
    bad_corpus = str(write(tmp_path / "bad.jsonl", [3]))
    output = tmp_path / "output.jsonl"
    for source, target, arguments, message in (
        (data, there, (), "exists already"),
        (data, tmp_path / "mined.parquet", (), r"ends in '\.parquet'"),
        (data, output, ("--num-negatives", "0"), "impossible"),
        (data, output, ("--range-min", "-1"), "impossible"),
        (data, output, ("--range-min", "48"), "impossible"),
        (mined, output, (), "has 1 negatives a row already"),
        (scored, output, (), "has scores already"),
        (tmp_path / "none.jsonl", output, (), "No such file"),
        (data, output, ("--corpus", bad_corpus), r"bad.jsonl: 1 of 1 rows are bad"),
        (data, output, (), "broken cannot be loaded"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            run(broken, source, target, *arguments)
    with pytest.raises(SystemExit, match=r"error: checkpoint '.*none' is neither a folder"):
        run(tmp_path / "none", data, output)
    assert there.read_text(encoding="utf-8") == "precious"
    assert not output.exists()


def test_nothing_is_written_of_a_file_that_cannot_be_finished(data: Path, tmp_path: Path) -> None:
    rows, _ = parse_rows(data)
    output = tmp_path / "mined.jsonl"
    output.write_text("precious", encoding="utf-8")
    with pytest.raises(ValueError, match="shorter"):
        write_rows(output, rows, [[], []])
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_text(encoding="utf-8") == "precious"


def test_impossible_options() -> None:
    with pytest.raises(MiningError, match="4 negatives of the candidates from 47 to 50 are impossible"):
        MiningOptions(num_negatives=4, range_min=47)
