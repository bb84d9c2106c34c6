"""A row that is too long for the model is found when rows are read, by its file and line, and only such a row."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.data import DataError, parse_rows, read_rows, read_sides
from finetune.model import open_preprocessor
from finetune.sides import SideReader
from finetune.tasks import read_pairs, read_retrieval, read_similarity
from finetune.vectors import VectorTable
from images import ItemError
from preprocessing import PackError, Preprocessor
from tests.samples import encode, image

ROOT = Path(__file__).resolve().parents[2]
LONG = "cat " * 9000  # of 8192 tokens that a model takes
MAX_PIXELS = 4096
GOOD = [{"anchor": f"a cat {i}", "positive": f"eine Katze {i}"} for i in range(4)]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def preprocessor(tiny_checkpoint: Path) -> Preprocessor:
    return open_preprocessor(tiny_checkpoint)


@pytest.fixture
def narrow(tiny_checkpoint: Path) -> Preprocessor:
    """Return a preprocessor that takes a hundred tokens."""
    preprocessor = open_preprocessor(tiny_checkpoint)
    preprocessor.bounds = replace(preprocessor.bounds, max_tokens=100)
    return preprocessor


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"anchor": LONG, "positive": "b"}, "anchor has"),
        ({"anchor": "a", "positive": {"text": LONG}}, "positive has"),
        ({"anchor": "a", "positive": {"text": "b", "instruction": LONG}}, "positive has"),
        ({"anchor": "a", "positive": {"text": LONG, "image": "picture.png"}}, "positive has"),
        ({"a": LONG, "b": "b", "score": 1}, "a has"),
    ],
    ids=["text", "object", "instruction", "image and text", "scored"],
)
def test_a_long_row_is_named_by_its_line(
    row: dict[str, Any], named: str, tmp_path: Path, preprocessor: Preprocessor
) -> None:
    (tmp_path / "picture.png").write_bytes(encode(image(64, 64)))
    good = {"a": "a", "b": "b", "score": 0} if "a" in row else GOOD[0]
    path = write_rows(tmp_path / "rows.jsonl", [good, row, good])
    message = rf"1 of 3 rows are bad:\n.*rows.jsonl:2: TEXT_TOO_LONG {named} \d+ tokens: .*takes 8192\. Shorten"
    with pytest.raises(DataError, match=message):
        read_rows(path, preprocessor=preprocessor)
    rows, (bad,) = read_rows(path, preprocessor=preprocessor, on_error="skip")
    assert len(rows) == 2
    assert (bad.line, bad.code) == (2, "TEXT_TOO_LONG")
    assert len(bad.message) < 300


def test_the_parts_of_a_long_row_are_counted(tmp_path: Path, narrow: Preprocessor) -> None:
    (tmp_path / "picture.png").write_bytes(encode(image(320, 320)))  # 100 visual tokens
    path = write_rows(tmp_path / "rows.jsonl", [{"anchor": {"image": "picture.png"}, "positive": "a"}] * 2)
    with pytest.raises(DataError, match=r"0 of its text, 100 of its image, \d+ of instruction and prompt"):
        read_rows(path, preprocessor=narrow)


def test_the_image_budget_of_the_run_counts(tmp_path: Path, tiny_checkpoint: Path, narrow: Preprocessor) -> None:
    (tmp_path / "picture.png").write_bytes(encode(image(320, 320)))
    path = write_rows(tmp_path / "rows.jsonl", [{"anchor": {"image": "picture.png"}, "positive": "a"}] * 2)
    narrow.bounds = replace(narrow.bounds, max_pixels=MAX_PIXELS)
    assert len(read_rows(path, preprocessor=narrow)[0]) == 2


def test_negatives_and_corpora(tmp_path: Path, preprocessor: Preprocessor) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{**GOOD[0], "negatives": ["a", LONG]}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: TEXT_TOO_LONG negatives\[1\] has"):
        parse_rows(path, preprocessor=preprocessor)
    path = write_rows(tmp_path / "corpus.jsonl", ["a", {"text": LONG}])
    with pytest.raises(DataError, match=r"corpus.jsonl:2: TEXT_TOO_LONG the row has"):
        read_sides(path, preprocessor=preprocessor)


@pytest.mark.parametrize("read", [read_pairs, read_similarity])
def test_pairs_of_an_evaluation(read: Callable[..., Any], tmp_path: Path, preprocessor: Preprocessor) -> None:
    rows = [{"a": "a", "b": "b", "score": 1}, {"a": "a", "b": LONG, "score": 0}]
    with pytest.raises(DataError, match=r"rows.jsonl:2: TEXT_TOO_LONG b has"):
        read("pairs", write_rows(tmp_path / "rows.jsonl", rows), VectorTable(), preprocessor)


def test_the_instruction_of_queries_counts(tmp_path: Path, narrow: Preprocessor) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"id": "1", "text": "a cat"}])
    read_retrieval("search", path, path, VectorTable(), narrow)
    with pytest.raises(DataError, match=r"rows.jsonl:1: TEXT_TOO_LONG"):
        read_retrieval("search", path, path, VectorTable(), narrow, query_instruction="Find it. " * 50)


def test_long_lists_are_bounded(tmp_path: Path, narrow: Preprocessor) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"anchor": f"{i} {'cat ' * 100}", "positive": "b"} for i in range(500)])
    with pytest.raises(DataError, match=r"500 of 500 rows are bad[^$]*and 480 more; all 500: 500 TEXT_TOO") as caught:
        read_rows(path, preprocessor=narrow)
    assert len(str(caught.value)) < 10_000


PIECES = ["cat ", "\n", "  ", "猫", "क़", "\U0001d160", "e\u0301", "<|im_end|>", "🐱", "x" * 7, "\u0390", "1234"]


def test_what_is_read_is_what_the_server_takes(tmp_path: Path, narrow: Preprocessor) -> None:
    random.seed(0)
    picture = encode(image(96, 64))
    (tmp_path / "picture.png").write_bytes(picture)
    reader = SideReader(tmp_path, narrow)
    ours, theirs = [], []
    for _ in range(600):
        text = "".join(random.choices(PIECES, k=random.randrange(1, 60))) + "."
        instruction = "".join(random.choices(PIECES, k=random.randrange(0, 20)))
        has_image = random.random() < 0.5
        try:
            narrow([text.encode()], [picture] if has_image else None, [instruction.encode()])
            theirs.append("")
        except PackError as error:
            theirs.append(json.loads(str(error).partition("\n")[2])["items"][0]["code"])
        try:
            reader.parse("the row", {"text": text, "instruction": instruction, "image": "picture.png" * has_image})
            ours.append("")
        except ItemError as error:
            ours.append(error.code)
    assert 100 < ours.count("TEXT_TOO_LONG") < 500
    assert [bool(code) for code in ours] == [bool(code) for code in theirs]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_the_command_stops_or_skips(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*GOOD, {"anchor": LONG, "positive": "b"}])
    files = ["finetune", "--checkpoint", tiny_checkpoint, "--train", rows, "--eval", rows, "--output", tmp_path / "out"]
    options = ["--max-steps", 1, "--batch-size", 4, "--rank", 4]
    stopped = run(*files, *options)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert f"{rows}:5: TEXT_TOO_LONG anchor has" in stopped.stderr and not (tmp_path / "out").exists()
    skipped = run(*files, *options, "--on-error", "skip")
    assert skipped.returncode == 0, skipped.stderr
    assert skipped.stdout.count(f"{rows}: 4 rows, 1 left out:\n{rows}:5: TEXT_TOO_LONG anchor has") == 2
    assert (tmp_path / "out/model.safetensors").exists()


def test_evaluation_names_the_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"id": "1", "text": "a"}, {"id": "1", "text": LONG}])
    task = f"search={rows}:{rows}"
    done = run("finetune.evaluate", "--checkpoint", tiny_checkpoint, "--retrieval", task, "--output", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{rows}:2: TEXT_TOO_LONG" in done.stderr
