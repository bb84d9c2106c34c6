"""The kinds of files that are inputs, by their suffixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ._format import IMAGE_SUFFIXES, Cursor, Format, Rows
from ._json_lines import JsonLines
from ._parquet_file import Parquet
from ._separated import Separated
from ._webdataset import WebDataset


class ImageFile:
    """A file that is one row, its image. The server decodes it."""

    def column_names(self, path: Path) -> None:
        return None

    def scan(self, path: Path, ignored: Counter[str] | None = None) -> Iterator[Cursor]:
        yield Cursor(0, 1)

    def read(self, path: Path, start: Cursor) -> Rows:
        yield start, {"image": Path(path.name)}


FORMATS: Mapping[str, Format] = {
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".csv": Separated(","),
    ".tsv": Separated("\t"),
    ".parquet": Parquet(),
    ".tar": WebDataset(),
    **dict.fromkeys(IMAGE_SUFFIXES, ImageFile()),
}
