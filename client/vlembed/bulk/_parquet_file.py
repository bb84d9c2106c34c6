"""Parquet; rows are found by their row group. pandas is not needed, whatever the types."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .._checks import shown
from .._extras import require
from .._metadata import iso_datetime, iso_duration
from ._format import BadRowError, Cursor, Fields, Rows, opened, unreadable

BATCH_ROWS = 64  # in memory; they may hold images


class Parquet:
    """Files of the suffix .parquet."""

    def column_names(self, path: Path) -> list[str]:
        with self._open(path) as file:
            return list(file.schema_arrow.names)

    def scan(self, path: Path, ignored: Counter[str] | None = None) -> Iterator[Cursor]:
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
            if path.is_file():
                with opened(path, "Parquet"):  # which tells of another kind
                    pass
            raise unreadable(path, error) from error

    def _read_group(self, file: Any, group: int, skip: int) -> Iterator[Fields | BadRowError]:
        num_rows, row = file.metadata.row_group(group).num_rows, 0
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                columns = [(name, batch[name], _converter(batch[name].type)) for name in batch.schema.names]
                for index in range(max(0, skip - row), len(batch)):
                    yield _fields(columns, index)
                row += len(batch)
        except (OSError, ValueError) as error:
            damaged = BadRowError("ROW_MALFORMED", f"row group {group} is damaged ({error}). Write the file again.")
            yield from [damaged] * (num_rows - max(row, skip))


def _fields(columns: list[tuple[str, Any, Callable[[Any], Any]]], index: int) -> Fields | BadRowError:
    fields = {}
    for name, column, convert in columns:
        try:
            fields[name] = convert(column[index])
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, dates that Python cannot hold
            message = f"the row holds what Python cannot in the column {shown(name)} ({error}). Convert that column."
            return BadRowError("ROW_MALFORMED", message)
    return fields


def _converter(kind: Any) -> Callable[[Any], Any]:
    """Return what makes a value of Python of a scalar of a type; nanoseconds, which Python lacks, become texts."""
    return _with_nanoseconds if _has_nanoseconds(kind) else lambda scalar: scalar.as_py()


def _has_nanoseconds(kind: Any) -> bool:
    types = require("pyarrow", "bulk").types
    if types.is_timestamp(kind) or types.is_duration(kind) or types.is_time64(kind):
        return bool(kind.unit == "ns")
    if types.is_dictionary(kind):
        return _has_nanoseconds(kind.value_type)
    return any(_has_nanoseconds(kind.field(index).type) for index in range(kind.num_fields))


def _with_nanoseconds(scalar: Any) -> Any:
    pa = require("pyarrow", "bulk")
    kind = scalar.type
    if not scalar.is_valid or not _has_nanoseconds(kind):
        return scalar.as_py()
    if pa.types.is_dictionary(kind):
        return _with_nanoseconds(scalar.value)
    if pa.types.is_struct(kind):
        return {name: _with_nanoseconds(scalar[name]) for name in scalar}
    if pa.types.is_map(kind):
        keys, values = scalar.values.field(0), scalar.values.field(1)
        return [tuple(map(_with_nanoseconds, pair)) for pair in zip(keys, values, strict=True)]
    if pa.types.is_nested(kind):
        return [_with_nanoseconds(own) for own in scalar.values]
    if pa.types.is_duration(kind):
        return iso_duration(scalar.value)
    microseconds, nanoseconds = divmod(scalar.value, 1000)
    if pa.types.is_time64(kind):
        time = (datetime.datetime.min + datetime.timedelta(microseconds=microseconds)).time()
        return iso_datetime(time, nanoseconds)
    return iso_datetime(pa.scalar(microseconds, pa.timestamp("us", kind.tz)).as_py(), nanoseconds)
