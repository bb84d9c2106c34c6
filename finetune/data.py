"""Rows of training and evaluation data, from JSONL or Parquet: every row is checked, every bad one is named.

Knows files and the formats of rows; what a side may be is `sides`' business. A file holds one format, an object a row
(in JSONL a line; blank lines are passed over), and null is the same as absent:

    {"anchor": SIDE, "positive": SIDE, "negatives": [SIDE, ...], "group": "..."}    the last two are optional
    {"a": SIDE, "b": SIDE, "score": 0.8}

A SIDE is a text, or {"text": "...", "image": "cat.png", "instruction": "..."} with a text, an image or both. Image
paths are absolute, or relative to the folder of the data file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from finetune.sides import SIDE_KEYS, Side, SideReader, check_keys, parse_string, wrong_type
from images import ItemError
from preprocessing import Preprocessor

__all__ = ["BadRow", "DataError", "OnError", "Row", "Side", "listing", "parse_rows", "read_rows", "read_sides"]

OnError: TypeAlias = Literal["raise", "skip"]

CONTRASTIVE_KEYS = ("anchor", "positive", "negatives", "group")
SCORED_KEYS = ("a", "b", "score")
SIDE_TYPE = pa.struct([(key, pa.string()) for key in SIDE_KEYS])
MAX_LISTED = 20  # bad rows that an error shows in full


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
    sides: list[Side]  # anchor, positive and negatives; or a and b; or the one of a corpus
    group: str = ""
    score: float | None = None  # of scored pairs

    @property
    def format(self) -> str:
        """Say which format the row has."""
        return "contrastive" if self.score is None else "a scored pair"


def listing(path: Path, bad_rows: Sequence[BadRow]) -> str:
    """Return `file:line: CODE message` of the first 20 bad rows, a line each, and how many there are of each code."""
    lines = [f"{path}:{bad.line}: {bad.code} {bad.message}" for bad in bad_rows[:MAX_LISTED]]
    if len(bad_rows) > MAX_LISTED:
        counts = ", ".join(f"{count} {code}" for code, count in Counter(bad.code for bad in bad_rows).most_common())
        lines.append(f"and {len(bad_rows) - MAX_LISTED} more; all {len(bad_rows)}: {counts}")
    return "\n".join(lines)


def read_rows(
    path: Path, *, preprocessor: Preprocessor | None = None, on_error: OnError = "raise"
) -> tuple[Dataset, list[BadRow]]:
    """Read a file of contrastive rows or of scored pairs.

    Parameters
    ----------
    path
        A .jsonl, .json (an object a line as well) or .parquet file.
    preprocessor
        Of the checkpoint that the rows are for, from `finetune.model.open_preprocessor`: a row with more tokens than
        the model takes is bad. Left out, nothing is tokenised.
    on_error
        "raise" refuses a file with bad rows, "skip" leaves them out and returns them.

    Returns
    -------
    Dataset
        With columns `anchor`, `positive`, `negative_1` to `negative_N`, each of `Side`, and `group` (str, "" for none)
        if any row has one; or with `a`, `b` and `score` (float64).
    list of BadRow
        What was left out, in the order of the file; empty unless `on_error` is "skip".

    Raises
    ------
    DataError
        The file cannot be read, has bad rows, no good row is left, or the rows have different numbers of negatives.
    """
    rows, bad_rows = parse_rows(path, preprocessor=preprocessor, on_error=on_error)
    is_scored = rows[0].score is not None
    names = ["a", "b"] if is_scored else ["anchor", "positive"]
    names += [f"negative_{i}" for i in range(1, len(rows[0].sides) - 1)]
    columns = {name: pa.array([row.sides[i] for row in rows], SIDE_TYPE) for i, name in enumerate(names)}
    if is_scored:
        columns["score"] = pa.array([row.score for row in rows], pa.float64())
    elif any(row.group for row in rows):
        columns["group"] = pa.array([row.group for row in rows], pa.string())
    return Dataset(pa.table(columns)), bad_rows


def parse_rows(
    path: Path, *, preprocessor: Preprocessor | None = None, on_error: OnError = "raise"
) -> tuple[list[Row], list[BadRow]]:
    """Read what `read_rows` reads, as rows that know their line; same parameters, same errors."""
    rows, bad_rows = _read(path, _parse_row, preprocessor, on_error)
    lines: dict[int, int] = {}  # number of negatives: the first line that has it
    for row in rows:
        lines.setdefault(len(row.sides) - 2, row.line)
    if len(lines) > 1:
        found = ", ".join(f"{count} at line {line}" for count, line in lines.items())
        raise DataError(
            f"{path}: rows have different numbers of negatives ({found}); every row of a file needs the same, because "
            "a batch has full columns. Cut them to one number, or let finetune.mine find them."
        )
    return rows, bad_rows


def read_sides(
    path: Path, *, preprocessor: Preprocessor | None = None, on_error: OnError = "raise"
) -> tuple[list[Side], list[BadRow]]:
    """Read a corpus: a SIDE a line, or a .parquet file with columns of text, image, instruction; errors as above."""
    rows, bad_rows = _read(path, _parse_corpus_row, preprocessor, on_error)
    return [row.sides[0] for row in rows], bad_rows


def _read(
    path: Path,
    parse: Callable[[int, object, SideReader], Row],
    preprocessor: Preprocessor | None,
    on_error: OnError,
) -> tuple[list[Row], list[BadRow]]:
    reader = SideReader(path.parent, preprocessor)
    rows: list[Row] = []
    bad_rows: list[BadRow] = []
    try:
        for line, value in _values(path):
            try:
                row = parse(line, value, reader)
                if rows and row.format != rows[0].format:
                    raise ItemError(
                        "FORMATS_MIXED",
                        f"the row is {row.format}, that of line {rows[0].line} is {rows[0].format}; a file holds one "
                        "format. Put them in two files.",
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
    """Yield line and value of every row: the bytes of a line, which are still to be parsed, or a row of a table."""
    if path.suffix in (".jsonl", ".json"):
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    elif path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches())
            yield from enumerate(chain.from_iterable(batches), 1)
    else:
        raise DataError(f"{path} ends in {path.suffix!r}; data are .jsonl, .json or .parquet. Convert or rename it.")


def _parse_row(line: int, value: object, reader: SideReader) -> Row:
    value = _from_json(value)
    if not isinstance(value, dict):
        raise wrong_type("the row", value, "an object of anchor and positive, or of a, b and score")
    is_scored = not value.keys().isdisjoint(SCORED_KEYS)
    check_keys("the row", value, SCORED_KEYS if is_scored else CONTRASTIVE_KEYS)
    required = SCORED_KEYS if is_scored else CONTRASTIVE_KEYS[:2]
    for key in required:
        if value.get(key) is None:
            raise ItemError("KEY_MISSING", f"the row has no {key}; it needs {', '.join(required)}. Add it.")
    sides = [reader.parse(key, value[key]) for key in required[:2]]
    if is_scored:
        return Row(line, sides, score=_score(value["score"]))
    negatives = value.get("negatives")
    if not isinstance(negatives, list | None):
        raise wrong_type("negatives of the row", negatives, "a list of texts or objects")
    sides += [reader.parse(f"negatives[{i}]", negative) for i, negative in enumerate(negatives or [])]
    return Row(line, sides, parse_string("the row", "group", value.get("group")))


def _parse_corpus_row(line: int, value: object, reader: SideReader) -> Row:
    return Row(line, [reader.parse("the row", _from_json(value))])


def _from_json(value: object) -> object:
    if not isinstance(value, bytes):
        return value
    try:
        return json.loads(value, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ItemError(
            "NOT_JSON", f"the line {value[:40]!r} is not JSON ({error}). Write one object a line, in UTF-8."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"an object has a key of {', '.join(value)} twice")
    return value


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type("score of the row", value, "a number")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise ItemError("SCORE_NOT_FINITE", f"score is {str(value)[:40]}; it needs to be finite. Correct it.")
    return score
