"""The input as a list of files and a list of shards, so that a shard is the same rows whenever it is read.

`input.jsonl` in the output is a line for each file: its name, size and time, and where in it shards begin. Knows
neither servers nor vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NoReturn

from .._checks import shown
from .._exceptions import InvalidInputError
from .._walk import REPEATED_FILES, SIDE_FILES, Links, is_side_path, walk
from ._format import IMAGE_SUFFIXES, Cursor, unreadable
from ._formats import FORMATS
from ._rows import Columns, Failure, Row, to_row

NO_FILE = '{"name": null}'  # beside the last one
CURE = "Undo it, or embed into another output."


@dataclass(frozen=True)
class Shard:
    """Neighbouring rows of the input."""

    number: int
    line: int  # byte offset, in input.jsonl, of the file where it begins
    start: Cursor  # in that file
    position: int  # of its first row in the whole input
    num_rows: int


@dataclass
class Input:
    """The files of an input, each under its name relative to `root`, and what was left out.

    Parameters
    ----------
    paths
        Files, and folders, which stand for the files in them and below, sorted, if they are all images or all tables.

    Raises
    ------
    InvalidInputError
        Nothing there, one inside another, a file of another kind, or a folder of images and tables.
    """

    paths: Sequence[Path]
    root: Path = field(init=False)
    ignored: Counter[str] = field(default_factory=Counter)  # what is left out: side files, links, others by suffix

    def __post_init__(self) -> None:
        self.paths = [Path(os.path.abspath(path)) for path in self.paths]  # noqa: PTH100  (links stay)
        if not self.paths or len(set(self.paths)) < len(self.paths):
            given = shown([str(path) for path in self.paths])
            raise InvalidInputError(f"input is {given}. Pass files or folders, each once.")
        for path in self.paths:
            if outer := next((folder for folder in self.paths if _is_inside(path, folder)), None):
                raise InvalidInputError(f"input {str(path)!r} is inside the input {str(outer)!r}. Pass one of the two.")
            if not path.exists():
                raise InvalidInputError(f"input {str(path)!r} does not exist. Pass files or folders.")
            if not path.is_dir() and path.suffix.lower() not in FORMATS:
                raise InvalidInputError(f"input {str(path)!r} is none of {', '.join(FORMATS)}. Convert or unpack it.")
        self.root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in self.paths]))

    def files(self) -> Iterator[Path]:
        """Yield every file in order, and count the others."""
        self.ignored.clear()
        links = Links(self._is_found)
        for path in self.paths:
            yield from self._walk(path, links) if path.is_dir() else [path]

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield name, size and time of every file in order."""
        return (_entry(self.root, path) for path in self.files())

    def _is_found(self, target: Path) -> bool:
        """Tell whether a real file is found in one of the folders under its own name."""
        return target.suffix.lower() in FORMATS and any(
            target.is_relative_to(folder) and not is_side_path(str(target.relative_to(folder)))
            for folder in (path.resolve() for path in self.paths if path.is_dir())
        )

    def _walk(self, folder: Path, links: Links) -> Iterator[Path]:
        examples: dict[bool, Path] = {}
        for path in walk(folder, self.ignored, _refuse):
            suffix = path.suffix.lower()
            if suffix not in FORMATS or not path.is_file():
                self.ignored[suffix or path.name] += 1
                continue
            if links.is_repeated(path):
                self.ignored[REPEATED_FILES] += 1
                continue
            examples.setdefault(suffix in IMAGE_SUFFIXES, path)
            if len(examples) == 2:
                raise InvalidInputError(
                    f"folder {str(folder)!r} has images and tables ({str(examples[True])!r} and "
                    f"{str(examples[False])!r}). Pass those that are meant."
                )
            yield path


def _is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path is in a folder, or a folder is the same one or in it by way of a link."""
    if folder in path.parents:
        return True
    return path != folder and path.is_dir() and path.resolve().is_relative_to(folder.resolve())


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(Path(error.filename), error) from error


def _entry(root: Path, path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    name = path.relative_to(root).as_posix()
    return {"name": name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def write_plan(source: Input, file: Path, shard_size: int, columns: Columns) -> tuple[int, str]:
    """Write `input.jsonl`, and return the number of rows and its SHA-256. Every file is read once.

    Raises
    ------
    InvalidInputError
        A file that cannot be read, lacks a column, or no row at all.
    """
    num_rows, digest = 0, hashlib.sha256()
    with file.open("wb") as lines:
        for entry in source.entries():
            path, starts, ignored = source.root / entry["name"], [], Counter[str]()
            kind = FORMATS[path.suffix.lower()]
            if (names := kind.column_names(path)) is not None:
                columns.check(names, path)
            for cursor in kind.scan(path, ignored):
                if num_rows % shard_size == 0:
                    starts.append(cursor)
                num_rows += 1
            line = json.dumps(entry | {"starts": starts, "side_files": ignored[SIDE_FILES]}).encode() + b"\n"
            digest.update(line)
            lines.write(line)
    if not num_rows:
        raise InvalidInputError(f"the input has no rows (other files: {dict(+source.ignored)}). Pass files with rows.")
    return num_rows, digest.hexdigest()


def read_plan(
    source: Input, file: Path, shard_size: int, num_rows: int, *, images_may_differ: bool = False
) -> list[Shard]:
    """Read `input.jsonl`, and hold every file against it.

    Raises
    ------
    InvalidInputError
        The input has changed; naming the first file that did.
    """
    shards: list[Shard] = []
    offset = 0
    with file.open("rb") as lines:
        for line, entry in zip_longest(lines, source.entries()):
            planned = json.loads(line or NO_FILE)
            starts = planned.pop("starts", ())
            source.ignored[SIDE_FILES] += planned.pop("side_files", 0)
            _compare(planned, entry or json.loads(NO_FILE), images_may_differ=images_may_differ)
            for start in starts:
                position = len(shards) * shard_size
                size = min(shard_size, num_rows - position)
                shards.append(Shard(len(shards), offset, Cursor(*start), position, size))
            offset += len(line)
    return shards


def _compare(planned: dict[str, Any], found: dict[str, Any], *, images_may_differ: bool) -> None:
    if planned["name"] != found["name"]:
        names = f"{planned['name']!r} was expected, {found['name']!r} is there"
        raise InvalidInputError(f"the input's files are others than when the output was begun: {names}. {CURE}")
    is_image = planned["name"].lower().endswith(IMAGE_SUFFIXES)
    if planned != found and not (is_image and images_may_differ):
        raise InvalidInputError(
            f"the input file {planned['name']!r} has changed since the output was begun ({planned} is now {found}). "
            f"{CURE}"
        )


def read_rows(root: Path, file: Path, shard: Shard, columns: Columns) -> Iterator[Row | Failure]:
    """Yield the rows of a shard in order; only the part of each file that it needs is read.

    Raises
    ------
    InvalidInputError
        A file cannot be read any more.
    """
    num_rows = shard.position
    for row in islice(_read_on(root, file, shard, columns), shard.num_rows):
        yield row
        num_rows += 1
    if num_rows < shard.position + shard.num_rows:
        raise InvalidInputError(f"the input has lost rows since the output was begun: shard {shard.number}. {CURE}")


def _read_on(root: Path, file: Path, shard: Shard, columns: Columns) -> Iterator[Row | Failure]:
    start, position = shard.start, shard.position
    with file.open("rb") as lines:
        lines.seek(shard.line)
        for line in lines:
            planned = json.loads(line)
            del planned["starts"], planned["side_files"]
            name = planned["name"]
            path = root / name
            suffix = path.suffix.lower()
            if not (is_image := suffix in IMAGE_SUFFIXES):
                _compare(planned, _entry(root, path), images_may_differ=False)
            for cursor, fields in FORMATS[suffix].read(path, start):
                place = name if is_image else f"{name}:{cursor.number}"
                yield to_row(fields, Columns() if is_image else columns, position, place, root, name)
                position += 1
            start = Cursor(0, 1)
