"""Parquet files that are there as a whole or not at all, and what they hold.

A file is written under another name in its folder, flushed to the disk, and renamed to one that has its checksum, so
that nobody ever overwrites a file that somebody reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from .._exceptions import OutputError
from .._extras import require
from .._files import place, temporary_file
from ._rows import Failure, Row

if TYPE_CHECKING:
    from .._result import EmbeddedItem

METADATA_KEY = "vlembed"  # of the schema: the model and the options, in JSON
CHUNK_BYTES = 1 << 20
ROW_GROUP_ROWS = 1024  # what a reader holds at once: 8 MiB of vectors with 2048 dimensions


class FileRecord(TypedDict):
    """A file of the output."""

    name: str  # relative to the output
    rows: int
    bytes: int
    sha256: str


@contextmanager
def output_file(folder: Path) -> Iterator[Path]:
    """Yield the path of a file to write, and remove it unless it was placed.

    Raises
    ------
    OutputError
        It could not be written or placed.
    """
    try:
        with temporary_file(folder) as path:
            yield path
    except OSError as error:
        raise OutputError(
            f"folder {str(folder)!r} cannot be written ({error}). Free space or give access, and run the same again: "
            "finished shards are kept."
        ) from error


def sha256_of(path: Path) -> str:
    """Return the checksum of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(output: Path, name: str, sha256: str) -> None:
    """Hold a file of the output against its checksum.

    Raises
    ------
    OutputError
        It is another, or the file cannot be read.
    """
    try:
        reason = "" if sha256_of(output / name) == sha256 else "its checksum is another"
    except OSError as error:
        reason = str(error)
    if reason:
        raise OutputError(
            f"{str(output / name)!r} is damaged ({reason}). Restore it, or embed the input into another output."
        )


class EmbeddedRows:
    """Rows with their vectors, as they come, without their images.

    Parameters
    ----------
    max_rows
        n, how many there may be.
    dimensions
        d
    dtype
        Of the vectors as they are stored.
    """

    def __init__(self, max_rows: int, dimensions: int, dtype: str) -> None:
        self._rows: list[tuple[str, str, int]] = []  # id, metadata, position
        self._vectors = np.empty((max_rows, dimensions), dtype)
        self._tokens = np.empty((2, max_rows), np.int32)  # of text, of image

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row, item: EmbeddedItem) -> None:
        """Append a row."""
        self._vectors[len(self)] = item.embedding
        self._tokens[:, len(self)] = item.text_tokens, item.image_tokens
        self._rows.append((row.id, row.metadata, row.position))

    def write(self, output: Path, number: int, about: Mapping[str, Any]) -> FileRecord:
        """Write them as a file of a shard."""
        pa = require("pyarrow", "bulk")
        size, dimensions = len(self), self._vectors.shape[1]
        ids, metadata, positions = zip(*self._rows, strict=True)
        columns = {
            "id": pa.array(ids, pa.string()),
            "metadata": pa.array(metadata, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(self._vectors[:size].ravel()), dimensions),
            "text_tokens": pa.array(self._tokens[0, :size]),
            "image_tokens": pa.array(self._tokens[1, :size]),
            "position": pa.array(positions, pa.int64()),
        }
        return _write(output, "shards", number, columns, about)


def write_failures(output: Path, number: int, failures: Sequence[Failure], about: Mapping[str, Any]) -> FileRecord:
    """Write the rows that have no vector."""
    pa = require("pyarrow", "bulk")
    columns = {
        "id": pa.array([_printable(failure.id) for failure in failures], pa.string()),
        "place": pa.array([_printable(failure.place) for failure in failures], pa.string()),
        "code": pa.array([failure.code for failure in failures], pa.string()),
        "message": pa.array([_printable(failure.message) for failure in failures], pa.string()),
        "position": pa.array([failure.position for failure in failures], pa.int64()),
    }
    return _write(output, "errors", number, columns, about)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()  # names of files and bad cells need not be UTF-8


def read_positions(output: Path, file: FileRecord) -> set[int]:
    """Return the positions of the rows of a file, after its checksum."""
    check_file(output, file["name"], file["sha256"])
    table = require("pyarrow.parquet", "bulk").read_table(output / file["name"], columns=["position"])
    return set(table["position"].to_pylist())


def _write(output: Path, folder: str, number: int, columns: Mapping[str, Any], about: Mapping[str, Any]) -> FileRecord:
    table = require("pyarrow", "bulk").table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(about)})
    with output_file(output / folder) as temporary:
        require("pyarrow.parquet", "bulk").write_table(
            table, temporary, row_group_size=ROW_GROUP_ROWS, compression="zstd", use_dictionary=False
        )
        sha256, size_bytes = sha256_of(temporary), temporary.stat().st_size
        name = f"{folder}/{number:06}-{sha256[:16]}.parquet"
        place(temporary, output / name)
    return {"name": name, "rows": table.num_rows, "bytes": size_bytes, "sha256": sha256}
