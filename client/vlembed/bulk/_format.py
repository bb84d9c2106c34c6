"""What every kind of file is read as: numbered rows that can be read from any row on.

A row that cannot be read is a `BadRowError` in its place, so that every file has as many rows each time it is read. A
file of which it is not certain where its rows begin is an `InvalidInputError` as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeAlias

from .._exceptions import InvalidInputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
KEY = "__key__"  # the field that names a sample, webdataset's name for it
START_BYTES = 512  # that tell what a file is
UNPACK = "unpack it, for rows are found by their offset"
TO_UTF8 = "save it as UTF-8, for example with iconv"
SIGNATURES = {  # of the first bytes: what such a file is, and the cure
    rb"\x1f\x8b": ("gzip", UNPACK),
    rb"BZh[1-9]1AY": ("bzip2", UNPACK),
    rb"\xfd7zXZ\0": ("xz", UNPACK),
    rb"\x28\xb5\x2f\xfd": ("zstd", UNPACK),
    rb"PK\x03\x04": ("a zip archive or a workbook of Excel", "unpack it, or export its sheet as CSV"),
    rb"\xd0\xcf\x11\xe0": ("a workbook of Excel", "export its sheet as CSV"),
    rb"PAR1": ("Parquet", "name it .parquet"),
    rb"ARROW1": ("an Arrow file", "write it as Parquet"),
    rb"%PDF-": ("a PDF", "extract its pages as images or texts"),
    rb"\xff\xfe\0\0|\0\0\xfe\xff": ("UTF-32", TO_UTF8),
    rb"\xff\xfe|\xfe\xff": ("UTF-16", TO_UTF8),
    rb"\s*(?i:<!doctype html|<html|<\?xml)": ("an HTML or XML page", "download the data itself"),
}


class BadRowError(Exception):
    """One row cannot be used.

    Parameters
    ----------
    code, message
        As of an `ItemError`.
    key
        What names the row in its file, if not its number.
    """

    def __init__(self, code: str, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.key = key


class Cursor(NamedTuple):
    """Where a row begins."""

    offset: int  # in what the format counts: bytes, or rows of Parquet
    number: int  # of the row in its file, for people: a line of JSON Lines, otherwise a row, from 1


Fields: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterator[tuple[Cursor, "Fields | BadRowError"]]


class Format(Protocol):
    """One kind of file."""

    def column_names(self, path: Path) -> list[str] | None:
        """Return the columns that all rows have, or None if each row has its own."""

    def scan(self, path: Path, ignored: Counter[str] | None = None) -> Iterator[Cursor]:
        """Yield where every row begins, without decoding rows, and count what is left out."""

    def read(self, path: Path, start: Cursor) -> Rows:
        """Yield the rows from one of those on."""


def unreadable(path: Path, error: object) -> InvalidInputError:
    """Return what is raised of a file that is not what its suffix says, or damaged."""
    return InvalidInputError(f"{str(path)!r} cannot be read ({error}). Repair it, or leave it out of the input.")


def _refuse_foreign(path: Path, file: IO[bytes], own: str) -> None:
    start = file.read(START_BYTES)
    file.seek(0)
    for signature, (what, cure) in SIGNATURES.items():
        if what != own and re.match(signature, start):
            raise unreadable(path, f"it is {what}; {cure}")


@contextmanager
def opened(path: Path, own: str = "") -> Iterator[IO[bytes]]:
    """Open a file, unless it begins as one of another kind of `SIGNATURES` than its own does.

    Raises
    ------
    InvalidInputError
        It does, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            _refuse_foreign(path, file, own)
            yield file
    except OSError as error:
        raise unreadable(path, error) from error
