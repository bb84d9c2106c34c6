"""CSV and TSV in UTF-8 with a header; quoted cells may hold line breaks. An empty cell is none, a blank line no row.

Read strictly, after RFC 4180: where a quote leaves in doubt which rows there are, the file is refused.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ._format import BadRowError, Cursor, Fields, Rows, opened, unreadable

MAX_CELL_CHARACTERS = 16 << 20
SEPARATORS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
QUOTED = r'"[^"]*(?:""[^"]*)*"'


class Separated:
    """Files whose cells are separated by one character."""

    def __init__(self, separator: str) -> None:
        self._separator = separator
        unquoted = rf"[^{separator}\r\n]*"
        cell = rf'(?:{QUOTED}|(?!"){unquoted})'
        self._open_quote = re.compile(rf'(?:{cell}{separator})*"')
        strict_cell = rf'(?:{QUOTED}|[^"{separator}\r\n]*)'
        self._strict_row = re.compile(rf"{strict_cell}(?:{separator}{strict_cell})*\r?\n?")

    def column_names(self, path: Path) -> list[str]:
        with opened(path) as file:
            return self._header(path, file)

    def scan(self, path: Path, ignored: Counter[str] | None = None) -> Iterator[Cursor]:
        return (cursor for cursor, _ in self.read(path, Cursor(0, 1)))

    def read(self, path: Path, start: Cursor) -> Rows:
        with opened(path) as file:
            header = self._header(path, file)
            offset, number = max(start.offset, file.tell()), start.number
            file.seek(offset)
            for cells in self._rows(path, file):
                if cells != []:
                    yield Cursor(offset, number), _join(header, cells)
                    number += 1
                offset = file.tell()

    def _header(self, path: Path, file: IO[bytes]) -> list[str]:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        header = next(self._rows(path, file), [])
        if isinstance(header, BadRowError):
            raise unreadable(path, f"its header: {header}")
        if not header:
            raise unreadable(path, "it has no header in its first line")
        if len(header) == 1 and (others := [name for own, name in SEPARATORS.items() if own in header[0]]):
            names = f"its header has {' and '.join(others)}, but cells are separated by {SEPARATORS[self._separator]}"
            raise unreadable(path, f"{names}; convert it, or if they are tabs, name it .tsv")
        try:
            "".join(header).encode()
        except UnicodeEncodeError:
            raise unreadable(path, "its header is not UTF-8; save the file as UTF-8, for example with iconv") from None
        return header

    def _rows(self, path: Path, file: IO[bytes]) -> Iterator[list[str] | BadRowError]:
        """Yield the cells of each row; the file is then where the next one begins."""
        csv.field_size_limit(MAX_CELL_CHARACTERS)  # of the process: csv has no other; the same for every reader
        lines: list[str] = []  # of this row
        start = file.tell()

        def read() -> Iterator[str]:
            for line in iter(file.readline, b""):
                lines.append(line.decode("utf-8", "surrogateescape"))
                yield lines[-1]

        reader = csv.reader(read(), delimiter=self._separator, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise unreadable(path, self._fault("".join(lines), file, start, error)) from error
            text = "".join(lines)
            if "\0" in text:
                raise unreadable(path, f"line {_line_at(file, start)} has a NUL byte: it is damaged, or no UTF-8")
            if '"' in text and not self._strict_row.fullmatch(text):
                message = f"the row {text[:60]!r} has a quote within a cell. Quote the cell, and double quotes in it."
                yield BadRowError("ROW_MALFORMED", message)
            else:
                yield cells
            lines.clear()
            start = file.tell()

    def _fault(self, text: str, file: IO[bytes], start: int, error: csv.Error) -> str:
        """Tell what is wrong with the row that begins at a byte, and in which line."""
        line = _line_at(file, start)
        if "new-line" in str(error):
            return (
                f"line {line} has a carriage return alone; end lines in a line feed, and quote cells that hold breaks"
            )
        if quote := self._open_quote.match(text):
            line += text.count("\n", 0, quote.end())
            return f"line {line} opens a quote that is never closed, or is closed within a cell: {error}"
        return f"line {line}: {error}"


def _line_at(file: IO[bytes], offset: int) -> int:
    """Return the number of the line, from 1, that begins at a byte."""
    file.seek(0)
    number = 1
    while (left := offset - file.tell()) > 0:
        number += file.read(min(left, 1 << 20)).count(b"\n")
    return number


def _join(header: list[str], cells: list[str] | BadRowError) -> Fields | BadRowError:
    if isinstance(cells, BadRowError):
        return cells
    if len(cells) != len(header):
        message = f"the row has {len(cells)} cells; the header names {len(header)}. Quote cells that hold separators."
        return BadRowError("ROW_MALFORMED", message)
    if cells == header or cells[0].startswith("\ufeff"):
        message = "the row repeats the header, or begins with a byte order mark: files were joined. Split them again."
        return BadRowError("ROW_MALFORMED", message)
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}
