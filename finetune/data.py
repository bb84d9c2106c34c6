"""Rows of training and evaluation data, from JSONL or Parquet: every row is checked, every bad one is named.

Knows the row formats and what the server accepts as text and as image; knows nothing of models. A file holds one format,
an object a row (of a .jsonl: a line; blank lines are passed over); null is the same as absent:

    {"anchor": SIDE, "positive": SIDE, "negatives": [SIDE, ...], "group": "..."}    the last two are optional
    {"a": SIDE, "b": SIDE, "score": 0.8}

A SIDE is a text, or {"text": "...", "image": "cat.png", "instruction": "..."} with a text, an image or both. Image paths
are absolute, or relative to the folder of the data file.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from images import PATCH_SIZE, ItemError, open_image, write_patches
from preprocessing import Bounds

OnError: TypeAlias = Literal["raise", "skip"]
FindImage: TypeAlias = Callable[[str], tuple[str, str, str]]

SIDE_KEYS = ("text", "image", "instruction")
CONTRASTIVE_KEYS = ("anchor", "positive", "negatives", "group")
SCORED_KEYS = ("a", "b", "score")
SIDE_FEATURE = {key: Value("string") for key in SIDE_KEYS}
MAX_LISTED = 20  # bad rows that an error shows in full
BOUNDS = Bounds()  # of the server

# The client's rule for what is no text, because a model that is asked to embed "cat.png" was meant to see the cat.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
DATA_URI = re.compile(r"data:[^,\s]*;base64,\S*|data:\w+/[^,\s]+,\S*", re.IGNORECASE)
IMAGE_PATH = re.compile(r"\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|svg)", re.IGNORECASE)


class Side(TypedDict):
    """One thing to embed; "" is none."""

    text: str
    image: str  # absolute path
    instruction: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used; `code` says why in one word, for programs."""

    line: int  # of a .jsonl; of a .parquet, the row; both from 1
    code: str
    message: str


class DataError(ValueError):
    """A data file cannot be used, or `bad_rows` of it; the message says why and what to do."""

    def __init__(self, message: str, bad_rows: Sequence[BadRow] = ()) -> None:
        super().__init__(message)
        self.bad_rows = tuple(bad_rows)

    @classmethod
    def of_rows(cls, path: Path, bad_rows: Sequence[BadRow], num_rows: int) -> DataError:
        """Refuse a file for its bad rows, all of them at once."""
        return cls(f"{path}: {len(bad_rows)} of {num_rows} rows are bad:\n{listing(path, bad_rows)}", bad_rows)


@dataclass(frozen=True)
class Row:
    """A good row, and where it stands."""

    line: int
    sides: list[Side]  # anchor, positive, negatives...; or a, b; or the one of a corpus
    group: str = ""
    score: float | None = None  # of scored pairs


def listing(path: Path, bad_rows: Sequence[BadRow]) -> str:
    """Return a line for each bad row, `file:line: CODE message`, and how many more there are after the first 20."""
    lines = [f"{path}:{bad.line}: {bad.code} {bad.message}" for bad in bad_rows[:MAX_LISTED]]
    if len(bad_rows) > MAX_LISTED:
        lines.append(f"and {len(bad_rows) - MAX_LISTED} more: {dict(Counter(bad.code for bad in bad_rows))} in all")
    return "\n".join(lines)


def read_rows(path: Path, *, on_error: OnError = "raise") -> tuple[Dataset, list[BadRow]]:
    """Read a file of contrastive rows or scored pairs.

    Parameters
    ----------
    path
        A .jsonl, .json (an object a line as well) or .parquet file.
    on_error
        "raise" refuses a file with bad rows, "skip" leaves them out and returns them.

    Returns
    -------
    Dataset
        With columns `anchor`, `positive`, `negative_1` to `negative_N`, each a `Side`, and `group` (str, "" for none)
        if any row has one; or with `a`, `b` and `score` (float64).
    list of BadRow
        What was left out; empty unless `on_error` is "skip".

    Raises
    ------
    DataError
        The file cannot be read, has bad rows, no good row is left, or the rows have different numbers of negatives.
    """
    rows, bad_rows = parse_rows(path, on_error=on_error)
    sides = list(zip(*(row.sides for row in rows), strict=True))
    if rows[0].score is not None:
        features = Features({"a": SIDE_FEATURE, "b": SIDE_FEATURE, "score": Value("float64")})
        columns = {"a": sides[0], "b": sides[1], "score": [row.score for row in rows]}
        return Dataset.from_dict(columns, features), bad_rows
    names = ["anchor", "positive", *(f"negative_{i}" for i in range(1, len(sides) - 1))]
    columns, features = dict(zip(names, sides, strict=True)), Features(dict.fromkeys(names, SIDE_FEATURE))
    if any(row.group for row in rows):
        columns["group"], features["group"] = [row.group for row in rows], Value("string")
    return Dataset.from_dict(columns, features), bad_rows


def parse_rows(path: Path, *, on_error: OnError = "raise") -> tuple[list[Row], list[BadRow]]:
    """Read what `read_rows` reads, as rows that know their line; same parameters, same errors."""
    rows, bad_rows = _read(path, _parse_row, on_error)
    lines: dict[int, int] = {}  # number of negatives: the first line that has it
    for row in rows:
        lines.setdefault(len(row.sides) - 2, row.line)
    if len(lines) > 1:
        found = ", ".join(f"{count} at line {line}" for count, line in lines.items())
        raise DataError(
            f"{path}: rows have different numbers of negatives ({found}); every row of a file needs the same, because "
            "the columns of a batch are full. Cut them to one number, or let finetune.mine write them."
        )
    return rows, bad_rows


def read_sides(path: Path, *, on_error: OnError = "raise") -> tuple[list[Side], list[BadRow]]:
    """Read a corpus: a SIDE a line, or a .parquet file with columns text, image, instruction."""
    rows, bad_rows = _read(path, _parse_corpus_row, on_error)
    return [row.sides[0] for row in rows], bad_rows


def side_to_json(side: Side, folder: Path) -> str | dict[str, str]:
    """Return the SIDE that reads as `side` in a file of `folder`."""
    if side["text"] and not side["image"] and not side["instruction"] and not _reference(side["text"]):
        return side["text"]
    values = dict(side)
    if side["image"]:
        values["image"] = os.path.relpath(side["image"], folder.resolve())
    return {key: str(value) for key, value in values.items() if value}


def _read(path: Path, parse: Callable[[object, FindImage], Row], on_error: OnError) -> tuple[list[Row], list[BadRow]]:
    find_image = cache(partial(_find_image, path.parent.resolve()))  # decodes each once, however many rows use it
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    try:
        for line, value in _values(path):
            try:
                row = replace(parse(value, find_image), line=line)
                if rows and (row.score is None) != (rows[0].score is None):
                    raise ItemError(
                        "FORMATS_MIXED",
                        f"the row is {_format(row)}, that of line {rows[0].line} is {_format(rows[0])}; a file holds "
                        "one format. Put them in two files.",
                    )
                rows.append(row)
            except ItemError as error:
                bad_rows.append(BadRow(line, error.code, str(error)))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}). Pass a whole .jsonl, .json or .parquet file.") from error
    if bad_rows and (on_error == "raise" or not rows):
        raise DataError.of_rows(path, bad_rows, len(rows) + len(bad_rows))
    if not rows:
        raise DataError(f"{path} has no rows. Pass a file with at least one.")
    return rows, bad_rows


def _values(path: Path) -> Iterator[tuple[int, object]]:
    """Yield line and value of every row; the bytes of a line that is still to be parsed."""
    if path.suffix in (".jsonl", ".json"):
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    elif path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches())
            yield from enumerate(itertools.chain.from_iterable(batches), 1)
    else:
        raise DataError(f"{path} ends in {path.suffix!r}; data are .jsonl, .json or .parquet. Convert or rename it.")


def _format(row: Row) -> str:
    return "contrastive" if row.score is None else "a scored pair"


def _parse_row(value: object, find_image: FindImage) -> Row:
    value = _from_json(value)
    if not isinstance(value, dict):
        raise _wrong_type("the row", value, "an object of anchor and positive, or of a, b and score")
    is_scored = not value.keys().isdisjoint(SCORED_KEYS)
    _check_keys("the row", value, SCORED_KEYS if is_scored else CONTRASTIVE_KEYS)
    required = SCORED_KEYS if is_scored else CONTRASTIVE_KEYS[:2]
    for key in required:
        if value.get(key) is None:
            raise ItemError("KEY_MISSING", f"the row has no {key!r}; it needs {', '.join(required)}. Add it.")
    sides = [_side(key, value[key], find_image) for key in required[:2]]
    if is_scored:
        return Row(0, sides, score=_score(value["score"]))
    negatives = value.get("negatives") or []
    if not isinstance(negatives, list):
        raise _wrong_type("negatives", negatives, "a list")
    sides += [_side(f"negatives[{i}]", negative, find_image) for i, negative in enumerate(negatives)]
    return Row(0, sides, group=_string("group", value.get("group")))


def _parse_corpus_row(value: object, find_image: FindImage) -> Row:
    return Row(0, [_side("the row", _from_json(value), find_image)])


def _side(name: str, value: object, find_image: FindImage) -> Side:
    if isinstance(value, str):
        _check_is_text(name, value)
        value = {"text": value}
    if not isinstance(value, dict):
        raise _wrong_type(name, value, 'a text, or an object such as {"text": "a cat", "image": "cat.png"}')
    _check_keys(name, value, SIDE_KEYS)
    text, image, instruction = (_string(f"{key} of {name}", value.get(key)) for key in SIDE_KEYS)
    if not image and not text.strip():
        raise ItemError("ITEM_EMPTY", f"{name} has neither text nor image ({value!r}). Give it one.")
    if image:
        image, code, message = find_image(image)
        if code:
            raise ItemError(code, f"{name}: {image!r}: {message}")
    return {"text": text, "image": image, "instruction": instruction}


def _from_json(value: object) -> object:
    if not isinstance(value, bytes):
        return value
    try:
        return json.loads(value, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ItemError(
            "NOT_JSON", f"the line {value[:40]!r} is not JSON ({error}). Write one object a line, in UTF-8."
        ) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a key of {list(value)} stands there twice")
    return value


def _check_keys(name: str, value: dict[str, object], known: Sequence[str]) -> None:
    if unknown := [key for key in value if key not in known]:
        raise ItemError(
            "KEY_UNKNOWN", f"{name} has the key {unknown[0]!r}; known are {', '.join(known)}. Rename or remove it."
        )


def _string(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError as error:
        raise ItemError(
            "TEXT_NOT_UTF8",
            f"{name} has {value[error.start : error.end]!r} at {error.start}, which UTF-8 cannot hold. Remove it.",
        ) from error
    if size_bytes > BOUNDS.max_text_bytes:
        raise ItemError(
            "TEXT_TOO_LARGE",
            f"{name} has {size_bytes} bytes; the server takes {BOUNDS.max_text_bytes}. Shorten or split it.",
        )
    return value


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type("score", value, "a number")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise ItemError("SCORE_NOT_FINITE", f"score is {str(value)[:40]}; it needs to be finite. Correct it.")
    return score


def _wrong_type(name: str, value: object, expected: str) -> ItemError:
    return ItemError(
        "WRONG_TYPE", f"{name} is {repr(value)[:60]} of type {type(value).__name__}; it needs to be {expected}."
    )


def _check_is_text(name: str, text: str) -> None:
    if what := _reference(text):
        raise ItemError(
            "TEXT_IS_REFERENCE",
            f"{name} is the text {text[:60]!r}, {what}. If you mean the image, save it and write its path, "
            '{"image": "cat.png"}; if you mean the text itself, write {"text": ...}.',
        )


def _reference(text: str) -> str:
    """Say what a text refers to, or ""."""
    text = text.strip()
    for pattern, what in ((URL, "a URL"), (DATA_URI, "a data: URI"), (IMAGE_PATH, "the path of an image file")):
        if pattern.fullmatch(text):
            return what
    return ""


def _find_image(folder: Path, image: str) -> tuple[str, str, str]:
    """Return the absolute path of an image, and code and message of what the server would say against it."""
    try:
        path = (folder / image).resolve()
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # the latter for a NUL in the path
        reason = getattr(error, "strerror", None) or error
        return image, "FILE_UNREADABLE", f"{reason}. Name an image file, absolutely or from {folder}."
    try:
        opened = open_image(
            data,
            min_pixels=BOUNDS.min_pixels,
            max_pixels=BOUNDS.max_pixels,
            max_image_bytes=BOUNDS.max_image_bytes,
            max_image_pixels=BOUNDS.max_image_pixels,
        )
        write_patches(opened, np.empty((opened.num_tokens, PATCH_SIZE), np.uint8))
    except ItemError as error:
        return image, error.code, str(error)
    return str(path), "", ""
