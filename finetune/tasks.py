"""What is evaluated: files to tasks, whose sides are rows of a `VectorTable`.

Knows the formats; knows no metric. Pairs are rows {"a": SIDE, "b": SIDE, "score": number}, which `finetune.data` reads.
A retrieval task is two JSONL files, queries and gallery, of rows

    {"id": "1f34e", "language": "de", "text": "roter Apfel", "image": "apple.png", "instruction": "..."}

with an id or a list of them, a text, an image or both; the others may be left out. Image paths are absolute, or
relative to the file. A gallery row is relevant to a query row if they share an id.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data import BadRow, DataError, Row, parse_rows
from finetune.sides import Side, SideReader, parse_string, wrong_type
from finetune.vectors import VectorTable
from images import ItemError
from preprocessing import Preprocessor


@dataclass(frozen=True)
class PairTask:
    """Pairs of rows, and what they should score."""

    name: str
    path: Path
    rows_a: list[int]
    rows_b: list[int]
    scores: list[float]

    def labels(self) -> list[int]:
        """Return the scores as labels, 0 or 1."""
        return [int(score) for score in self.scores]


@dataclass(frozen=True)
class Entry:
    """A line of queries or of a gallery."""

    line: int
    row: int  # of the vector table
    ids: frozenset[str]
    language: str  # "" for none
    is_image: bool  # and nothing else


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the gallery that they search, and for each query the indexes of its relevant gallery entries."""

    name: str
    queries_path: Path
    gallery_path: Path
    queries: list[Entry]
    gallery: list[Entry]
    relevant: list[frozenset[int]]


def read_similarity(name: str, path: Path, table: VectorTable, preprocessor: Preprocessor | None = None) -> PairTask:
    """Read pairs with scores of any scale; `preprocessor` as in `finetune.data.read_rows`.

    Raises
    ------
    DataError
        The file cannot be read, or a correlation with its scores is undefined.
    """
    task = _read_pairs(name, path, table, parse_rows(path, preprocessor=preprocessor)[0])
    if len(set(task.scores)) < 2:
        raise DataError(
            f"{path}: every score is {task.scores[0]:g}; a correlation needs two different ones. Add other pairs."
        )
    return task


def read_pairs(name: str, path: Path, table: VectorTable, preprocessor: Preprocessor | None = None) -> PairTask:
    """Read pairs with scores of 0 and 1; `preprocessor` as in `finetune.data.read_rows`.

    Raises
    ------
    DataError
        The file cannot be read, or has other scores or only one of them.
    """
    rows = parse_rows(path, preprocessor=preprocessor)[0]
    bad_rows = [
        BadRow(row.line, "SCORE_NOT_LABEL", f"score is {row.score:g}; it is 0 or 1 here. Use --similarity for others.")
        for row in rows
        if row.score not in (0, 1, None)
    ]
    if bad_rows:
        raise DataError.of_rows(path, bad_rows, len(rows))
    task = _read_pairs(name, path, table, rows)
    if len(set(task.scores)) < 2:
        raise DataError(f"{path}: every score is {task.scores[0]:g}; both 0 and 1 are needed. Add other pairs.")
    return task


def read_retrieval(
    name: str,
    queries_path: Path,
    gallery_path: Path,
    table: VectorTable,
    preprocessor: Preprocessor | None = None,
    *,
    query_instruction: str = "",
) -> RetrievalTask:
    """Read queries and their gallery.

    Parameters
    ----------
    preprocessor
        As in `finetune.data.read_rows`.
    query_instruction
        Of queries that have none of their own; "" is the model's default.

    Raises
    ------
    DataError
        A file cannot be read or has bad rows, or a query has no relevant entry in the gallery.
    """
    queries = _read_entries(queries_path, table, SideReader(queries_path.parent, preprocessor, query_instruction))
    gallery = _read_entries(gallery_path, table, SideReader(gallery_path.parent, preprocessor))
    having: dict[str, set[int]] = defaultdict(set)
    for index, entry in enumerate(gallery):
        for identifier in entry.ids:
            having[identifier].add(index)
    relevant = [
        frozenset(index for identifier in query.ids for index in having.get(identifier, ())) for query in queries
    ]
    bad_rows = [
        BadRow(query.line, "NOTHING_RELEVANT", f"no row of {gallery_path} has the id {_listed(query.ids)}. Add one.")
        for query, indexes in zip(queries, relevant, strict=True)
        if not indexes
    ]
    if bad_rows:
        raise DataError.of_rows(queries_path, bad_rows, len(queries))
    return RetrievalTask(name, queries_path, gallery_path, queries, gallery, relevant)


def language_label(language: str, entries: Iterable[Entry]) -> str:
    """Return what a row or column of the cells is called: those without a language are "image" if all are, or "-"."""
    return language or ("image" if all(entry.is_image for entry in entries if not entry.language) else "-")


def _read_pairs(name: str, path: Path, table: VectorTable, rows: Sequence[Row]) -> PairTask:
    if rows[0].score is None:
        raise DataError(f'{path} has contrastive rows; this task needs {{"a": SIDE, "b": SIDE, "score": number}}.')
    places = [[table.add(side, path, row.line) for side in row.sides] for row in rows]
    scores = [float(row.score) for row in rows if row.score is not None]
    return PairTask(name, path, [a for a, _ in places], [b for _, b in places], scores)


def _read_entries(path: Path, table: VectorTable, reader: SideReader) -> list[Entry]:
    entries: list[Entry] = []
    bad_rows: list[BadRow] = []
    try:
        with path.open("rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    try:
                        ids, language, side = _parse_entry(data, reader)
                    except ItemError as error:
                        bad_rows.append(BadRow(line, error.code, str(error)))
                        continue
                    is_image = not side["text"]
                    entries.append(Entry(line, table.add(side, path, line), ids, language, is_image))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Pass a JSONL file of rows with an id.") from error
    if bad_rows:
        raise DataError.of_rows(path, bad_rows, len(entries) + len(bad_rows))
    if not entries:
        raise DataError(f"{path} has no rows. Pass a file with at least one.")
    return entries


def _parse_entry(data: bytes, reader: SideReader) -> tuple[frozenset[str], str, Side]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ItemError(
            "NOT_JSON", f"the line {data[:40]!r} is not JSON ({error}). Write one object a line."
        ) from error
    if not isinstance(value, dict):
        raise wrong_type("the row", value, 'an object such as {"id": "1f34e", "text": "red apple"}')
    ids = value.pop("id", None)
    if isinstance(ids, str):
        ids = [ids]
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) and each for each in ids):
        raise wrong_type("id of the row", ids, "a string or a list of strings, none of them empty")
    language = parse_string("the row", "language", value.pop("language", None))
    return frozenset(ids), language, reader.parse("the row", value)


def _listed(ids: Iterable[str]) -> str:
    return " or ".join(map(repr, sorted(ids)))
