"""Files as numbered rows that can be read from any row on: JSON Lines, CSV, Parquet, webdataset tar, single images.

Knows files; knows nothing of items, ids or shards. A row that cannot be read is a `BadRowError` in its place, so that
every file has as many rows each time it is read. A file that cannot be read at all is an `InvalidInputError`.
"""

from __future__ import annotations

import codecs
import csv
import json
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeAlias

from .._exceptions import InvalidInputError
from .._extras import require

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
BATCH_ROWS = 64  # of Parquet in memory; they may hold images
KEY = "__key__"  # the field that names a sample, webdataset's name for it
MAX_CELL_CHARACTERS = 16 << 20  # of CSV; a quote that is never closed would swallow the file


class BadRowError(Exception):
    """One row cannot be used."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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

    def scan(self, path: Path) -> Iterator[Cursor]:
        """Yield where every row begins, without decoding rows."""

    def read(self, path: Path, start: Cursor) -> Rows:
        """Yield the rows from one of those on."""


def unreadable(path: Path, error: object) -> InvalidInputError:
    """Return what is raised of a file that is not what its suffix says."""
    return InvalidInputError(f"{str(path)!r} cannot be read ({error}). Repair it, or leave it out of the input.")


class ImageFile:
    """A file that is one row, its image. The server decodes it."""

    def column_names(self, path: Path) -> None:
        return None

    def scan(self, path: Path) -> Iterator[Cursor]:
        yield Cursor(0, 1)

    def read(self, path: Path, start: Cursor) -> Rows:
        yield start, {"image": Path(path.name)}


class JsonLines:
    """An object a line. Blank lines are no rows."""

    def column_names(self, path: Path) -> None:
        return None

    def scan(self, path: Path) -> Iterator[Cursor]:
        return (cursor for cursor, _ in self._lines(path, Cursor(0, 1)))

    def read(self, path: Path, start: Cursor) -> Rows:
        return ((cursor, _parse_object(line)) for cursor, line in self._lines(path, start))

    def _lines(self, path: Path, start: Cursor) -> Iterator[tuple[Cursor, bytes]]:
        offset, number = start
        try:
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if line.strip():
                        yield Cursor(offset, number), line
                    offset, number = offset + len(line), number + 1
        except OSError as error:
            raise unreadable(path, error) from error


def _parse_object(line: bytes) -> Fields | BadRowError:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return BadRowError("ROW_MALFORMED", f"the line {line[:60]!r} is no JSON ({error}). Write an object a line.")
    if not isinstance(fields, dict):
        return BadRowError("ROW_MALFORMED", f"the line {line[:60]!r} is no JSON object. Write an object a line.")
    return fields


class CommaSeparated:
    """CSV in UTF-8 with a header; quoted cells may hold line breaks. An empty cell is none, a blank line no row."""

    def column_names(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                return self._header(path, file)
        except OSError as error:
            raise unreadable(path, error) from error

    def scan(self, path: Path) -> Iterator[Cursor]:
        return (cursor for cursor, _ in self.read(path, Cursor(0, 1)))

    def read(self, path: Path, start: Cursor) -> Rows:
        csv.field_size_limit(MAX_CELL_CHARACTERS)  # of the process: csv has no other; the same for every reader
        try:
            with path.open("rb") as file:
                header = self._header(path, file)
                offset, number = max(start.offset, file.tell()), start.number
                file.seek(offset)
                rows = _csv_rows(file)
                for cells in rows:
                    if cells != []:
                        yield Cursor(offset, number), _join(header, cells)
                        number += 1
                    offset = file.tell()
        except OSError as error:
            raise unreadable(path, error) from error

    def _header(self, path: Path, file: IO[bytes]) -> list[str]:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        header = next(_csv_rows(file), [])
        if isinstance(header, BadRowError):
            raise unreadable(path, f"its header: {header}")
        if not header:
            raise unreadable(path, "it has no header in its first line")
        return header


def _csv_rows(file: IO[bytes]) -> Iterator[list[str] | BadRowError]:
    """Yield the cells of each row; the file is then where the next one begins."""
    reader = csv.reader(line.decode("utf-8", "surrogateescape") for line in iter(file.readline, b""))
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRowError("ROW_MALFORMED", f"the row is no CSV ({error}). Check its quotes.")


def _join(header: list[str], cells: list[str] | BadRowError) -> Fields | BadRowError:
    if isinstance(cells, BadRowError):
        return cells
    if len(cells) != len(header):
        message = f"the row has {len(cells)} cells; the header names {len(header)}. Quote cells that hold commas."
        return BadRowError("ROW_MALFORMED", message)
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


class Parquet:
    """Parquet; rows are found by their row group."""

    def column_names(self, path: Path) -> list[str]:
        with self._open(path) as file:
            return list(file.schema_arrow.names)

    def scan(self, path: Path) -> Iterator[Cursor]:
        with self._open(path) as file:
            num_rows = file.metadata.num_rows
        return (Cursor(row, row + 1) for row in range(num_rows))

    def read(self, path: Path, start: Cursor) -> Rows:
        with self._open(path) as file:
            row = 0
            for group in range(file.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                if start.offset < end:
                    for fields in self._read_group(file, group, max(0, start.offset - row)):
                        row = max(row, start.offset)
                        yield Cursor(row, row + 1), fields
                        row += 1
                row = end

    def _open(self, path: Path) -> Any:
        try:
            return require("pyarrow.parquet", "bulk").ParquetFile(path)
        except (OSError, ValueError) as error:  # what pyarrow's own errors are, too
            raise unreadable(path, error) from error

    def _read_group(self, file: Any, group: int, skip: int) -> Iterator[Fields | BadRowError]:
        num_rows, row = file.metadata.row_group(group).num_rows, 0
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                for index in range(max(0, skip - row), len(batch)):
                    yield _to_python(batch.slice(index, 1))
                row += len(batch)
        except (OSError, ValueError) as error:
            damaged = BadRowError("ROW_MALFORMED", f"row group {group} is damaged ({error}). Write the file again.")
            yield from [damaged] * (num_rows - max(row, skip))


def _to_python(row: Any) -> Fields | BadRowError:
    try:
        return dict(row.to_pylist()[0])
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, dates that Python cannot hold
        return BadRowError("ROW_MALFORMED", f"the row holds what Python cannot ({error}). Convert that column.")


class WebDataset:
    """A tar of samples: neighbours whose names are equal up to the first dot. Its members' suffixes name the fields.

    The one image is `image`, `.txt` is `text`, the keys of `.json` are fields of their own, other texts keep their
    suffix as name.
    """

    def column_names(self, path: Path) -> None:
        return None

    def scan(self, path: Path) -> Iterator[Cursor]:
        return (cursor for cursor, _, _ in self._samples(path, Cursor(0, 1)))

    def read(self, path: Path, start: Cursor) -> Rows:
        return ((cursor, _read_sample(tar, members)) for cursor, tar, members in self._samples(path, start))

    def _samples(self, path: Path, start: Cursor) -> Iterator[tuple[Cursor, tarfile.TarFile, list[tarfile.TarInfo]]]:
        try:
            with path.open("rb") as file:
                file.seek(start.offset)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for number, (_, members) in enumerate(groupby(_members(tar, file), _key), start.number):
                        sample = list(members)
                        yield Cursor(sample[0].offset, number), tar, sample
        except (tarfile.TarError, OSError) as error:
            raise unreadable(path, error) from error


def _members(tar: tarfile.TarFile, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header of a large file
        if member.isfile():
            yield member
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


def _split_name(member: tarfile.TarInfo) -> tuple[str, str]:
    folder, slash, name = member.name.removeprefix("./").rpartition("/")
    stem, _, field = name.partition(".")
    return folder + slash + stem, field.lower()


def _key(member: tarfile.TarInfo) -> str:
    return _split_name(member)[0]


def _read_sample(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Fields | BadRowError:
    images = [member.name for member in members if member.name.lower().endswith(IMAGE_SUFFIXES)]
    if len(images) > 1:
        return BadRowError("ROW_MALFORMED", f"the sample has the images {images}; an item has one. Split the sample.")
    fields: dict[str, Any] = {KEY: _key(members[0])}
    for member in members:
        name = _split_name(member)[1]
        try:
            data = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file, no folder
        except (tarfile.TarError, OSError) as error:
            return BadRowError("ROW_MALFORMED", f"{member.name!r} cannot be read ({error}). Write the file again.")
        if member.name in images:
            fields["image"] = data
        elif name == "json":
            told = _parse_object(data)
            if isinstance(told, BadRowError):
                return BadRowError(told.code, f"{member.name!r}: {told}")
            fields = {**told, **fields}
        else:
            fields["text" if name == "txt" else name] = _decode(data)
    return fields


def _decode(data: bytes) -> str | bytes:
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        return data


FORMATS: Mapping[str, Format] = {
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".csv": CommaSeparated(),
    ".parquet": Parquet(),
    ".tar": WebDataset(),
    **dict.fromkeys(IMAGE_SUFFIXES, ImageFile()),
}
