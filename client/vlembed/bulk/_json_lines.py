"""JSON Lines: an object a line. Blank lines are no rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .._strict_json import parse_json
from ._format import BadRowError, Cursor, Fields, Rows, opened, unreadable

MAX_START_BYTES = 1 << 16  # that are looked at to tell what a file is


class JsonLines:
    """Files of the suffixes .jsonl and .ndjson, in UTF-8."""

    def column_names(self, path: Path) -> None:
        with opened(path) as file:
            _refuse_other_json(path, file)

    def scan(self, path: Path, ignored: Counter[str] | None = None) -> Iterator[Cursor]:
        return (cursor for cursor, _ in self._lines(path, Cursor(0, 1)))

    def read(self, path: Path, start: Cursor) -> Rows:
        return ((cursor, parse_object(line)) for cursor, line in self._lines(path, start))

    def _lines(self, path: Path, start: Cursor) -> Iterator[tuple[Cursor, bytes]]:
        offset, number = start
        with opened(path) as file:
            file.seek(offset)
            for line in file:
                if line.strip():
                    yield Cursor(offset, number), line
                offset, number = offset + len(line), number + 1


def parse_object(line: bytes) -> Fields | BadRowError:
    """Return the fields of an object of JSON."""
    try:
        fields = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRowError("ROW_MALFORMED", f"the line {line[:60]!r} is not UTF-8 ({error}). Save the input as UTF-8.")
    except (ValueError, RecursionError) as error:
        return BadRowError("ROW_MALFORMED", f"the line {line[:60]!r} is no JSON ({error}). Write an object a line.")
    if not isinstance(fields, dict):
        return BadRowError("ROW_MALFORMED", f"the line {line[:60]!r} is no JSON object. Write an object a line.")
    return fields


def _refuse_other_json(path: Path, file: IO[bytes]) -> None:
    """Refuse an array of objects, or objects of several lines, as a whole instead of line by line."""
    start = file.read(MAX_START_BYTES).decode("utf-8-sig", "replace").lstrip()
    if "\0" in start[:4]:
        raise unreadable(path, "it has NUL bytes, as UTF-16 does; save it as UTF-8")
    end = _end(start)
    is_spread = end is not None and "\n" in start[:end]
    is_array = start.startswith("[") and (end is None or not start[end:].strip())
    is_joined = end is not None and start[end:].lstrip(" \t\r").startswith("{")
    if is_spread or is_array or is_joined:
        what = "it is a JSON array, or an object of several lines, or has several objects in a line"
        raise unreadable(path, f"{what}; write an object a line, as by jq -c '.[]' or jq -c .")


def _end(text: str) -> int | None:
    """Return where the value of JSON ends that a text begins with, None if it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        return None
