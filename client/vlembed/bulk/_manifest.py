"""The manifest: what an output holds, and which of its files count.

`manifest.jsonl` begins with a line that says what was asked of which model. Every finished shard appends one line, and
is finished once that line is on the disk: the write of a line commits all files that it names. The last line of a shard
counts; a torn one at the end does not. One process at a time writes, under a lock.

Every line ends in a checksum of itself and of the checksum before it, so that no line can be changed, moved, repeated
or removed, except from the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from .._exceptions import InvalidInputError, OutputError
from .._files import TEMPORARY, place
from ._shards import FileRecord, check_file, output_file

MANIFEST, INPUT, LOCK = "manifest.jsonl", "input.jsonl", ".lock"
FOLDERS = ("shards", "errors")
CURE = "Restore the file from a copy, or embed the input into another output."
FORMAT = 2  # of the output; others are refused
CHECKED_LINE = re.compile(rb'(?P<content>\{.*), "check": "(?P<check>[0-9a-f]{32})"\}', re.DOTALL)
PARQUET_NAME = re.compile(r"\d{6,}-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True)
class Settings:
    """What vectors of one output have in common."""

    fingerprint: str  # the model
    dimensions: int
    dtype: str  # as stored
    instruction: str | None
    max_pixels: int | None
    truncate: bool
    allow_reference_text: bool
    columns: dict[str, str]
    shard_size: int  # rows


class ShardRecord(TypedDict):
    """A finished shard: rows + errors = rows of the input."""

    shard: int
    files: list[FileRecord]  # one, and one more for each retry that embedded some
    errors: FileRecord | None
    codes: dict[str, int]  # of the errors, counted


@dataclass
class Manifest:
    """A manifest as read, with the last record of every shard."""

    output: Path
    settings: Settings
    checkpoint: str
    input_sha256: str  # of input.jsonl
    num_rows: int  # of the input
    records: dict[int, ShardRecord]
    size_bytes: int  # up to the last complete line
    last_check: str  # of that line

    @property
    def num_shards(self) -> int:
        """Return how many shards there are when all are finished."""
        return -(-self.num_rows // self.settings.shard_size)

    @property
    def is_complete(self) -> bool:
        """Tell whether every row of the input is in a shard or in the errors."""
        return len(self.records) == self.num_shards

    def vector_files(self) -> Iterator[FileRecord]:
        """Yield the files of rows with vectors that count, in the order of shards."""
        for _, record in sorted(self.records.items()):
            yield from record["files"]

    def error_files(self) -> Iterator[FileRecord]:
        """Yield the files of rows without vectors that count, in the order of shards."""
        return (record["errors"] for _, record in sorted(self.records.items()) if record["errors"])

    def check_input_list(self) -> None:
        """Hold `input.jsonl` against its checksum.

        Raises
        ------
        OutputError
            It is damaged.
        """
        check_file(self.output, INPUT, self.input_sha256)

    def append(self, record: ShardRecord) -> None:
        """Commit a shard.

        Raises
        ------
        OutputError
            The line could not be written; the shard does not count.
        """
        line, check = _checked(record, self.last_check)
        path = self.output / MANIFEST
        try:
            with path.open("r+b") as file:
                file.seek(self.size_bytes)
                file.truncate()  # of what a run that ended within a line left
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} cannot be written ({error}). Free space, and run the same again."
            ) from error
        self.size_bytes += len(line)
        self.last_check = check
        self.records[record["shard"]] = record

    def check(self, settings: Settings) -> None:
        """Refuse to mix what is there with what is asked for.

        Raises
        ------
        InvalidInputError
            Naming the first difference.
        """
        was, now = asdict(self.settings), asdict(settings)
        if was["fingerprint"] != now["fingerprint"]:
            raise changed_model(self.settings, now["fingerprint"])
        for name in was:
            if was[name] != now[name]:
                raise InvalidInputError(
                    f"{name} is {now[name]!r}, but output {str(self.output)!r} was begun with {was[name]!r}. Use the "
                    "same, or another output."
                )

    def clean(self) -> None:
        """Remove what no line names: files of killed runs, and those that a later record replaced."""
        known = {file["name"] for file in (*self.vector_files(), *self.error_files())}
        leftovers = list(self.output.glob(f".*{TEMPORARY}"))
        for folder in FOLDERS:
            for path in (self.output / folder).iterdir():
                is_ours = path.suffix == TEMPORARY or PARQUET_NAME.fullmatch(path.name)
                if is_ours and f"{folder}/{path.name}" not in known:
                    leftovers.append(path)
        for path in leftovers:
            path.unlink(missing_ok=True)


def changed_model(settings: Settings, fingerprint: str) -> InvalidInputError:
    """Return what is raised when the server has another model than the output."""
    return InvalidInputError(
        f"the output holds vectors of the model with fingerprint {settings.fingerprint!r}; the server now has "
        f"{fingerprint!r}, and vectors of two models have nothing in common. Serve the former, or use another output."
    )


def create_manifest(output: Path, settings: Settings, *, checkpoint: str, input_sha256: str, num_rows: int) -> None:
    """Write a manifest without shards."""
    head = {
        "format": FORMAT,
        "checkpoint": checkpoint,
        "settings": asdict(settings),
        "input_sha256": input_sha256,
        "rows": num_rows,
    }
    with output_file(output) as temporary:
        temporary.write_bytes(_checked(head, "")[0])
        place(temporary, output / MANIFEST)


def read_manifest(output: Path) -> Manifest:
    """Read a manifest, also while a run goes on.

    Raises
    ------
    InvalidInputError
        There is none, or one of another release.
    OutputError
        It is damaged.
    """
    path = output / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"{str(output)!r} is no output of a bulk run ({error}). Pass the folder that one wrote."
        ) from error
    *lines, _ = data.split(b"\n")  # what follows the last line is torn
    if not lines:
        raise OutputError(f"{str(path)!r} is damaged: it has no complete line. {CURE}")
    _check_format(lines[0], path)
    contents, check = list[Any](), ""
    for number, line in enumerate(lines, 1):
        content, check = _content(line, check, f"line {number} of {str(path)!r}")
        contents.append(content)
    head, *records = contents
    return Manifest(
        output=output,
        settings=Settings(**head["settings"]),
        checkpoint=head["checkpoint"],
        input_sha256=head["input_sha256"],
        num_rows=head["rows"],
        records={record["shard"]: record for record in records},
        size_bytes=sum(len(line) + 1 for line in lines),
        last_check=check,
    )


def _check_format(line: bytes, path: Path) -> None:
    """Refuse the first line of another release; one that is damaged is left to its checksum."""
    try:
        head = json.loads(line)
        version = head["format"]
    except (ValueError, TypeError, KeyError):
        return
    is_whole = _is_checked(line, "") if "check" in head else version == 1  # the first format had no checksums
    if is_whole and version != FORMAT:
        raise InvalidInputError(
            f"{str(path)!r} has format {version}; this release reads {FORMAT}. Use the release that wrote it, or embed "
            "the input into another output."
        )


def _checked(content: Mapping[str, Any], check_before: str) -> tuple[bytes, str]:
    """Return content as a line, and the checksum that it ends in."""
    text = json.dumps(content).removesuffix("}").encode()
    check = _check(text, check_before)
    return text + f', "check": "{check}"}}\n'.encode(), check


def _check(text: bytes, check_before: str) -> str:
    return hashlib.sha256(check_before.encode() + text).hexdigest()[:32]


def _is_checked(line: bytes, check_before: str) -> bool:
    parts = CHECKED_LINE.fullmatch(line)
    return parts is not None and _check(parts["content"], check_before) == parts["check"].decode()


def _content(line: bytes, check_before: str, name: str) -> tuple[Any, str]:
    """Return what a line says, and its checksum."""
    if not _is_checked(line, check_before):
        raise OutputError(f"{name} is damaged: its checksum is another. {CURE}")
    content = json.loads(line)
    return content, content.pop("check")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second run out; the lock ends with the process, however that ends.

    Raises
    ------
    OutputError
        Another run holds it, or the folder cannot be made.
    """
    try:
        for folder in FOLDERS:
            (output / folder).mkdir(parents=True, exist_ok=True)
        file = (output / LOCK).open("a+")
    except OSError as error:
        raise OutputError(f"output {str(output)!r} cannot be made ({error}). Pass a folder to write to.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"output {str(output)!r} is in use by another run ({error}). Wait for its end."
            ) from error
        yield
