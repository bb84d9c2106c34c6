"""What an output holds, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ._manifest import Manifest


@dataclass(frozen=True)
class Report:
    """What an output holds."""

    num_rows: int  # of the input
    num_embedded: int
    errors: dict[str, int]  # rows without a vector, by code
    num_shards: int
    checkpoint: str
    fingerprint: str
    dimensions: int
    dtype: str
    ignored: dict[str, int] | None  # what was left out of the input, counted; None of `verify`, which does not look
    duplicate_ids: dict[str, int] | None  # the first ids with several vectors; None of `embed_files`, likewise

    @property
    def num_errors(self) -> int:
        """Return how many rows have no vector."""
        return sum(self.errors.values())


def report_of(
    manifest: Manifest, *, ignored: dict[str, int] | None = None, duplicate_ids: dict[str, int] | None = None
) -> Report:
    """Sum up a manifest."""
    errors: Counter[str] = Counter()
    for record in manifest.records.values():
        errors.update(record["codes"])
    return Report(
        num_rows=manifest.num_rows,
        num_embedded=sum(file["rows"] for file in manifest.vector_files()),
        errors=dict(errors),
        num_shards=manifest.num_shards,
        checkpoint=manifest.checkpoint,
        fingerprint=manifest.settings.fingerprint,
        dimensions=manifest.settings.dimensions,
        dtype=manifest.settings.dtype,
        ignored=ignored,
        duplicate_ids=duplicate_ids,
    )
