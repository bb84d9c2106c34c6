"""Rows are read alike from JSONL and Parquet, and every kind of bad row is refused by name and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value

import finetune
import images
from finetune.data import BadRow, DataError, parse_rows, read_rows, read_sides
from finetune.sides import DATA_URI, IMAGE_PATH, URL, side_to_json
from tests.samples import data_uri, encode, image

ROOT = Path(finetune.__file__).parents[1]
SIDE = {"text": Value("string"), "image": Value("string"), "instruction": Value("string")}
GOOD = {"anchor": "a cat", "positive": "eine Katze"}
SCORED = {"a": "a cat", "b": "a dog", "score": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images, good and bad."""
    (tmp_path / "sub").mkdir()
    png = encode(image(40, 40))
    (tmp_path / "cat.png").write_bytes(png)
    (tmp_path / "sub/dog.jpg").write_bytes(encode(image(50, 40), "JPEG"))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7 and so on")
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "long.png").write_bytes(encode(image(402, 2)))
    frames = [image(40, 40, seed=seed) for seed in (1, 2)]
    (tmp_path / "moves.webp").write_bytes(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    return tmp_path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    """Write rows with a column for every key, which is null where a row has none."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), path)
    return path


def the_bad_row(path: Path, line: int = 2) -> BadRow:
    """Return the only bad row of a file, after checking that raising and skipping tell of the same one."""
    with pytest.raises(DataError) as caught:
        read_rows(path)
    rows, bad_rows = read_rows(path, on_error="skip")
    (bad,) = bad_rows
    assert caught.value.bad_rows == (bad,)
    assert f"{path}:{line}: {bad.code} {bad.message}" in str(caught.value)
    assert bad.line == line
    assert len(rows) == 2
    return bad


def test_contrastive_rows(folder: Path) -> None:
    dataset, bad_rows = read_rows(
        write_jsonl(
            folder / "rows.jsonl",
            [
                {"anchor": "a cat", "positive": {"image": "cat.png"}, "negatives": ["a dog", {"text": "x.png"}]},
                {
                    "anchor": {"text": "der Hund", "instruction": "Find it."},
                    "positive": {"text": " ", "image": str(folder / "sub/dog.jpg")},
                    "negatives": [{"image": "sub/../cat.png"}, "ein Vogel"],
                    "group": "dogs",
                },
            ],
        )
    )
    assert bad_rows == []
    names = ["anchor", "positive", "negative_1", "negative_2"]
    assert dataset.features == Features(dict.fromkeys(names, SIDE) | {"group": Value("string")})
    cat, dog = str(folder / "cat.png"), str(folder / "sub/dog.jpg")
    assert dataset.to_list() == [
        {
            "anchor": {"text": "a cat", "image": "", "instruction": ""},
            "positive": {"text": "", "image": cat, "instruction": ""},
            "negative_1": {"text": "a dog", "image": "", "instruction": ""},
            "negative_2": {"text": "x.png", "image": "", "instruction": ""},
            "group": "",
        },
        {
            "anchor": {"text": "der Hund", "image": "", "instruction": "Find it."},
            "positive": {"text": " ", "image": dog, "instruction": ""},
            "negative_1": {"text": "", "image": cat, "instruction": ""},
            "negative_2": {"text": "ein Vogel", "image": "", "instruction": ""},
            "group": "dogs",
        },
    ]


def test_columns_only_where_rows_have_them(tmp_path: Path) -> None:
    empty = {**GOOD, "negatives": [], "group": ""}
    dataset, _ = read_rows(write_jsonl(tmp_path / "rows.jsonl", [GOOD, empty, {**GOOD, "group": None}]))
    assert dataset.column_names == ["anchor", "positive"]


def test_scored_pairs(folder: Path) -> None:
    dataset, bad_rows = read_rows(write_jsonl(folder / "rows.json", [SCORED, {**SCORED, "score": 1}]))
    assert bad_rows == []
    assert dataset.features == Features({"a": SIDE, "b": SIDE, "score": Value("float64")})
    assert dataset["score"][:] == [0.5, 1.0]
    assert dataset["b"][1] == {"text": "a dog", "image": "", "instruction": ""}


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"anchor": "猫", "positive": "a cat", "negatives": ["a dog"]},
            {"anchor": "鸟", "positive": "a bird", "negatives": ["a cow"], "group": "birds"},
        ],
        [
            {"anchor": {"text": "a"}, "positive": {"image": "cat.png", "instruction": "See."}},
            {"anchor": {"text": "b"}, "positive": {"image": "sub/dog.jpg", "text": "wau"}},
        ],
        [SCORED, {**SCORED, "b": None}, {**SCORED, "score": None}, {**SCORED, "score": float("inf")}],
    ],
    ids=["texts", "objects", "scored"],
)
def test_jsonl_and_parquet_agree(folder: Path, rows: list[Any]) -> None:
    ours = read_rows(write_jsonl(folder / "rows.jsonl", rows), on_error="skip")
    theirs = read_rows(write_parquet(folder / "rows.parquet", rows), on_error="skip")
    assert ours[0].features == theirs[0].features
    assert ours[0].to_list() == theirs[0].to_list()
    assert ours[1] == theirs[1]


@pytest.mark.parametrize(
    ("bad", "code", "cure"),
    [
        ('{"anchor": "a"', "NOT_JSON", "one object a line"),
        ('{"anchor": "a", "anchor": "b", "positive": "c"}', "NOT_JSON", "twice"),
        ("[" * 100_000, "NOT_JSON", "one object a line"),
        (b'{"anchor": "\xe9", "positive": "c"}', "NOT_JSON", "UTF-8"),
        ("[]", "WRONG_TYPE", "an object"),
        ('"a cat"', "WRONG_TYPE", "an object"),
        ({**GOOD, "anchro": "a"}, "KEY_UNKNOWN", "'anchro'; known are anchor, positive, negatives, group"),
        ({**GOOD, "negative": None}, "KEY_UNKNOWN", "'negative'; known are"),
        ({**SCORED, "anchor": "a"}, "KEY_UNKNOWN", "'anchor'; known are a, b, score"),
        (
            {**GOOD, "anchor": {"txt": "a"}},
            "KEY_UNKNOWN",
            "anchor has the key 'txt'; known are text, image, instruction",
        ),
        ({"anchor": "a"}, "KEY_MISSING", "no positive"),
        ({"anchor": None, "positive": "a"}, "KEY_MISSING", "no anchor"),
        (SCORED, "FORMATS_MIXED", "that of line 1 is contrastive"),
        ({**GOOD, "anchor": 3}, "WRONG_TYPE", "anchor is 3 of type int"),
        ({**GOOD, "anchor": ["a", "b"]}, "WRONG_TYPE", "anchor is ['a', 'b'] of type list"),
        ({**GOOD, "anchor": {"text": 3}}, "WRONG_TYPE", "text of anchor is 3 of type int; it needs to be a string"),
        ({**GOOD, "anchor": {"image": {"path": "cat.png"}}}, "WRONG_TYPE", "image of anchor"),
        ({**GOOD, "anchor": {"text": "a", "instruction": True}}, "WRONG_TYPE", "instruction of anchor is True"),
        ({**GOOD, "group": 7}, "WRONG_TYPE", "group of the row is 7 of type int"),
        ({**GOOD, "negatives": "a"}, "WRONG_TYPE", "negatives of the row is 'a' of type str; it needs to be a list"),
        ({**GOOD, "negatives": ["a", None]}, "WRONG_TYPE", "negatives[1] is None"),
        ({**GOOD, "anchor": " \n\t"}, "ITEM_EMPTY", "anchor is {'text': ' \\n\\t'}, neither text nor image"),
        ({**GOOD, "anchor": {"instruction": "Find it."}}, "ITEM_EMPTY", "anchor is {'instruction'"),
        ({**GOOD, "positive": {"text": "", "image": ""}}, "ITEM_EMPTY", "positive is"),
        ({**GOOD, "negatives": [{}]}, "ITEM_EMPTY", "negatives[0] is {}"),
        ('{"anchor": "\\ud800", "positive": "b"}', "TEXT_NOT_UTF8", "text of anchor has '\\ud800' at 0"),
        ({**GOOD, "anchor": "é" * 131_073}, "TEXT_TOO_LARGE", "262146 bytes; the server takes 262144"),
        ({**GOOD, "anchor": "cat.png"}, "TEXT_IS_REFERENCE", '{"image": "cat.png"}'),
        ({**GOOD, "negatives": ["a/b/Cat.JPEG\n"]}, "TEXT_IS_REFERENCE", "negatives[0]"),
        ({**GOOD, "anchor": "https://example.org/cat"}, "TEXT_IS_REFERENCE", "a URL"),
        ({**GOOD, "anchor": data_uri(b"cat").decode()}, "TEXT_IS_REFERENCE", "a data: URI"),
        ({**GOOD, "anchor": {"image": "no.png"}}, "FILE_UNREADABLE", "anchor: 'no.png': No such file or directory."),
        ({**GOOD, "anchor": {"image": "sub"}}, "FILE_UNREADABLE", "Is a directory"),
        ({**GOOD, "anchor": {"image": "cat\0.png"}}, "FILE_UNREADABLE", "null byte"),
        ({**GOOD, "anchor": {"image": "a" * 5000}}, "FILE_UNREADABLE", "File name too long"),
        ({**GOOD, "anchor": {"image": data_uri(b"cat").decode()}}, "FILE_UNREADABLE", "Name an image file"),
        ({**GOOD, "anchor": {"image": "empty.png"}}, "IMAGE_UNDECODABLE", "0 bytes"),
        ({**GOOD, "negatives": [{"image": "report.pdf"}]}, "IMAGE_UNDECODABLE", "negatives[0]: 'report.pdf': image"),
        ({**GOOD, "anchor": {"image": "cut.png", "text": "a"}}, "IMAGE_TRUNCATED", "cut short"),
        ({**GOOD, "anchor": {"image": "long.png"}}, "IMAGE_RATIO", "402 x 2"),
        ({**GOOD, "anchor": {"image": "moves.webp"}}, "IMAGE_ANIMATED", "several frames"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_row(folder: Path, bad: object, code: str, cure: str) -> None:
    line = bad if isinstance(bad, bytes) else bad.encode() if isinstance(bad, str) else json.dumps(bad).encode()
    good = json.dumps(GOOD).encode()
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join([good, line, good, b""]))
    row = the_bad_row(path)
    assert row.code == code
    assert cure in row.message


@pytest.mark.parametrize(
    ("score", "code"),
    [
        ("true", "WRONG_TYPE"),
        ('"0.5"', "WRONG_TYPE"),
        ("NaN", "SCORE_NOT_FINITE"),
        ("-Infinity", "SCORE_NOT_FINITE"),
        ("1" + "0" * 400, "SCORE_NOT_FINITE"),
        ("1" + "0" * 5000, "NOT_JSON"),  # more digits than Python takes
        ("null", "KEY_MISSING"),
    ],
    ids=lambda value: value[:12],
)
def test_bad_score(tmp_path: Path, score: str, code: str) -> None:
    good = json.dumps(SCORED)
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{good}\n{{"a": "x", "b": "y", "score": {score}}}\n{good}\n', encoding="utf-8")
    assert the_bad_row(path).code == code


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    good = json.dumps(GOOD)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"\ufeff{good}\r\n\r\n  \nbad\n{good}".encode())
    assert the_bad_row(path, line=4).code == "NOT_JSON"
    assert [row.line for row in parse_rows(path, on_error="skip")[0]] == [1, 5]


def test_row_numbers_go_on_from_batch_to_batch(tmp_path: Path) -> None:
    anchors = ["a"] * 70_000  # pyarrow reads 65,536 at a time
    anchors[69_998] = ""
    pq.write_table(pa.table({"anchor": anchors, "positive": ["b"] * 70_000}), tmp_path / "rows.parquet")
    dataset, (bad,) = read_rows(tmp_path / "rows.parquet", on_error="skip")
    assert (bad.line, bad.code, len(dataset)) == (69_999, "ITEM_EMPTY", 69_999)


def test_every_bad_row_is_told_of_the_first_twenty_in_full(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, *[{**GOOD, "anchor": ""}] * 22, *[3] * 3])
    with pytest.raises(DataError) as caught:
        read_rows(path)
    first, *lines, last = str(caught.value).split("\n")
    assert first == f"{path}: 25 of 26 rows are bad:"
    assert [line.split(" ")[0] for line in lines] == [f"{path}:{line}:" for line in range(2, 22)]
    assert last == "and 5 more; all 25: 22 ITEM_EMPTY, 3 WRONG_TYPE"
    assert [bad.line for bad in caught.value.bad_rows] == list(range(2, 27))
    dataset, bad_rows = read_rows(path, on_error="skip")
    assert len(dataset) == 1
    assert tuple(bad_rows) == caught.value.bad_rows


def test_an_image_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = images.write_patches

    def write_patches(opened: Any, out: Any) -> None:
        decoded.append(opened)
        real(opened, out)

    monkeypatch.setattr("finetune.sides.write_patches", write_patches)
    rows = [{"anchor": f"cat {i}", "positive": {"image": "cat.png"}} for i in range(50)]
    rows += [{"anchor": f"cut {i}", "positive": {"image": "cut.png"}} for i in range(50)]
    _, bad_rows = read_rows(write_jsonl(folder / "rows.jsonl", rows), on_error="skip")
    assert len(bad_rows) == 50
    assert len(decoded) == 2


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "rows.csv").write_text("anchor,positive\na,b\n", encoding="utf-8")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    whole = write_parquet(tmp_path / "whole.parquet", [GOOD] * 1000).read_bytes()
    (tmp_path / "damaged.parquet").write_bytes(whole[:4] + bytes(30) + whole[34:])
    text = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"anchor": text, "positive": ["b"]}), tmp_path / "latin.parquet")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    write_jsonl(tmp_path / "all-bad.jsonl", [{"anchor": "a"}])
    for name, message in (
        ("none.jsonl", "cannot be read .*No such file"),
        ("none.parquet", "cannot be read .*No such file"),
        ("folder.jsonl", "cannot be read .*directory"),
        ("rows.csv", r"ends in '\.csv'; data are"),
        ("broken.parquet", "cannot be read"),
        ("damaged.parquet", "cannot be read"),
        ("latin.parquet", "cannot be read .*utf-8"),
        ("empty.jsonl", "has no rows"),
        ("all-bad.jsonl", "1 of 1 rows are bad:\n.*all-bad.jsonl:1: KEY_MISSING"),
    ):
        for on_error in ("raise", "skip"):
            with pytest.raises(DataError, match=message):
                read_rows(tmp_path / name, on_error=on_error)


def test_every_row_has_the_same_number_of_negatives(tmp_path: Path) -> None:
    rows = [{**GOOD, "negatives": ["a", "b"]}, {**GOOD, "negatives": ["a"]}, GOOD, {**GOOD, "negatives": ["a"]}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"\(2 at line 1, 1 at line 2, 0 at line 3\)"):
            read_rows(path, on_error=on_error)


def test_corpus(folder: Path) -> None:
    values = [{"text": "a bird"}, {"image": "cat.png", "text": None}, {"image": "no.png"}]
    theirs = read_sides(write_parquet(folder / "corpus.parquet", values), on_error="skip")
    ours = read_sides(write_jsonl(folder / "corpus.jsonl", ["a bird", *values[1:]]), on_error="skip")
    assert ours == theirs
    assert [bad.line for bad in ours[1]] == [3]
    assert ours[0] == [
        {"text": "a bird", "image": "", "instruction": ""},
        {"text": "", "image": str(folder / "cat.png"), "instruction": ""},
    ]


def test_sides_are_written_as_they_are_read(folder: Path) -> None:
    values = [
        "a bird",
        {"text": "cat.png"},
        {"image": "cat.png"},
        {"image": "sub/dog.jpg", "instruction": "Look."},
        {"text": "猫", "image": "cat.png", "instruction": "Look."},
    ]
    sides, _ = read_sides(write_jsonl(folder / "corpus.jsonl", values))
    assert [side_to_json(side, folder) for side in sides] == [
        {key: value[key] for key in ("text", "image", "instruction") if key in value}
        if isinstance(value, dict)
        else value
        for value in values
    ]
    elsewhere = folder / "sub"
    moved = write_jsonl(elsewhere / "corpus.jsonl", [side_to_json(side, elsewhere) for side in sides])
    assert "../cat.png" in moved.read_text(encoding="utf-8")
    assert read_sides(moved)[0] == sides


def test_a_text_is_what_the_client_takes_for_one() -> None:
    client = (ROOT / "client/vlembed/_items.py").read_text(encoding="utf-8")
    for pattern in (URL, DATA_URI, IMAGE_PATH):
        assert f'= re.compile(r"{pattern.pattern}"' in client


def test_dataset_is_what_the_trainer_takes(tmp_path: Path) -> None:
    dataset, _ = read_rows(write_jsonl(tmp_path / "rows.jsonl", [GOOD]))
    assert isinstance(dataset, Dataset)
    assert dataset[0]["anchor"] == {"text": "a cat", "image": "", "instruction": ""}
