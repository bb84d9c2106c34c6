"""What a finished run wrote: read it, hold it against its checksums, load it into an index."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._checks import whole_number
from .._exceptions import InvalidInputError, OutputError
from .._extras import require
from .._index import Index
from .._paths import local_path
from .._result import Embeddings
from ._manifest import Manifest, read_manifest
from ._report import Report, report_of
from ._shards import FileRecord, check_file

BLOCK_ROWS = 8192
MAX_DUPLICATES = 10  # that a report names


@dataclass(frozen=True)
class Block:
    """Some rows of an output."""

    ids: list[str]
    metadata: list[dict[str, Any]]
    embeddings: Embeddings  # float32, whatever is stored


def read_blocks(output: str | Path, block_rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Yield the rows that have vectors, shard by shard, each file after its checksum.

    Raises
    ------
    InvalidInputError
        No output of a bulk run, or a wrong block_rows.
    OutputError
        It is not finished, or damaged.
    """
    block_rows = whole_number("block_rows", block_rows, 1)
    manifest = _finished(output)
    for file in manifest.vector_files():
        for batch in _open(manifest, file).iter_batches(block_rows):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            values = columns["embedding"].flatten().to_numpy(zero_copy_only=False)
            yield Block(
                ids=columns["id"].to_pylist(),
                metadata=[json.loads(line) for line in columns["metadata"].to_pylist()],
                embeddings=Embeddings(
                    array=values.reshape(len(batch), -1).astype(np.float32, copy=False),
                    text_tokens=columns["text_tokens"].to_numpy(),
                    image_tokens=columns["image_tokens"].to_numpy(),
                    fingerprint=manifest.settings.fingerprint,
                ),
            )


def read_failures(output: Path, max_rows: int) -> list[dict[str, Any]]:
    """Return the first rows of an output that have no vector, as they are in its errors."""
    manifest = read_manifest(output)
    rows = (row for file in manifest.error_files() for row in _open(manifest, file).read().to_pylist())
    return list(islice(rows, max_rows))


def verify(output: str | Path) -> Report:
    """Hold an output against its manifest: every checksum, and every row of the input once.

    Ids come from the input, and nothing makes them unique; the report names the first that have several vectors.

    Raises
    ------
    InvalidInputError
        No output of a bulk run.
    OutputError
        It is not finished, or damaged: naming the file.
    """
    manifest = _finished(output)
    manifest.check_input_list()
    positions, hashes = [], [np.empty(0, np.int64)]  # of ids
    for file in manifest.vector_files():
        table = _open(manifest, file).read(["id", "position"])
        positions.append(table["position"].to_numpy())
        hashes.append(np.array([hash(own) for own in table["id"].to_pylist()], np.int64))
    for file in manifest.error_files():
        positions.append(_open(manifest, file).read(["position"])["position"].to_numpy())
    found = np.sort(np.concatenate(positions))
    if not np.array_equal(found, np.arange(manifest.num_rows)):
        raise OutputError(
            f"output {str(output)!r} has {len(found)} rows ({len(np.unique(found))} different ones) of "
            f"{manifest.num_rows} of the input. Embed the input into another output, and report this."
        )
    return report_of(manifest, duplicate_ids=_duplicates(manifest, np.concatenate(hashes)))


def load_into(index: Index, output: str | Path) -> int:
    """Put every row that has a vector into an index, replacing rows of the same id, and return how many there are.

    The output is verified first. A load that was cut short can be done again.

    Raises
    ------
    InvalidInputError
        An id has several vectors; or the index is for another model or other dimensions.
    OutputError
        The output is not finished, or damaged.
    VlembedError
        Of another kind, if Milvus cannot be reached or fails.
    """
    verify_ids(output)
    return fill(index, output)


def verify_ids(output: str | Path) -> Report:
    """Verify an output, and that every id has one vector; raises as `load_into` does of an output."""
    report = verify(output)
    if report.duplicate_ids:
        raise InvalidInputError(
            f"output {str(output)!r} has several vectors for an id ({str(report.duplicate_ids)[:200]}); an index would "
            "keep one. Give every row of the input an id of its own."
        )
    return report


def fill(index: Index, output: str | Path) -> int:
    """Put the rows of a verified output into an index, and return how many there are."""
    num_rows = 0
    for block in read_blocks(output):
        index.upsert(block.embeddings, ids=block.ids, metadata=block.metadata)
        num_rows += len(block.ids)
    return num_rows


def _finished(output: str | Path) -> Manifest:
    manifest = read_manifest(local_path(output, "output"))
    if not manifest.is_complete:
        raise OutputError(
            f"only {len(manifest.records)} of {manifest.num_shards} shards of {str(output)!r} are finished. Run the "
            "command that began it again."
        )
    return manifest


def _open(manifest: Manifest, file: FileRecord) -> Any:
    """Open a file after its checksum."""
    check_file(manifest.output, file["name"], file["sha256"])
    return require("pyarrow.parquet", "bulk").ParquetFile(manifest.output / file["name"])


def _duplicates(manifest: Manifest, hashes: npt.NDArray[np.int64]) -> dict[str, int]:
    """Count the vectors of the first ids that have several; only hashes of all ids are held."""
    hashes.sort()
    suspects = set(np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:MAX_DUPLICATES].tolist())
    counts: Counter[str] = Counter()
    for file in manifest.vector_files() if suspects else ():
        ids = _open(manifest, file).read(["id"])["id"].to_pylist()
        counts.update(own for own in ids if hash(own) in suspects)
    return {own: count for own, count in counts.items() if count > 1}
