"""Tar files of webdataset: a sample is neighbours whose names are equal up to the first dot.

The suffixes of its members name the fields: the one image is `image`, `.txt` is `text`, the keys of `.json` are fields
of their own, other texts keep their suffix as name. Side files, as macOS writes them, belong to no sample.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from .._walk import SIDE_FILES, is_side_path
from ._format import IMAGE_SUFFIXES, KEY, BadRowError, Cursor, Fields, Rows, opened, unreadable
from ._json_lines import parse_object

META = re.compile(r"(?:^|/)__[^/]*__(?:/|$)")  # what webdataset takes for no sample, either
Sample = list[tarfile.TarInfo]


class WebDataset:
    """Files of the suffix .tar."""

    def column_names(self, path: Path) -> None:
        return None

    def scan(self, path: Path, ignored: Counter[str] | None = None) -> Iterator[Cursor]:
        ignored = Counter() if ignored is None else ignored
        seen = set[int]()  # hashes of keys
        for cursor, _, members in self._samples(path, Cursor(0, 1), ignored):
            key = _key(members[0])
            if hash(key) in seen:
                cure = "Write the members of a sample one after the other: tar --sort=name"
                raise unreadable(path, f"the sample {key[:80]!r} is there twice, apart. {cure}")
            seen.add(hash(key))
            yield cursor

    def read(self, path: Path, start: Cursor) -> Rows:
        return ((cursor, _read_sample(tar, members)) for cursor, tar, members in self._samples(path, start, Counter()))

    def _samples(
        self, path: Path, start: Cursor, ignored: Counter[str]
    ) -> Iterator[tuple[Cursor, tarfile.TarFile, Sample]]:
        try:
            with opened(path) as file:
                file.seek(start.offset)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    members = _members(tar, file, ignored)
                    for number, (_, neighbours) in enumerate(groupby(members, _key), start.number):
                        sample = list(neighbours)
                        yield Cursor(sample[0].offset, number), tar, sample
        except tarfile.TarError as error:
            raise unreadable(path, error) from error


def _members(tar: tarfile.TarFile, file: IO[bytes], ignored: Counter[str]) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header of a large file
        if not (member.isfile() or member.islnk() or member.issym()):
            continue
        if is_side_path(member.name) or META.search(member.name):
            ignored[SIDE_FILES] += 1
        else:
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


def _read_sample(tar: tarfile.TarFile, members: Sample) -> Fields | BadRowError:
    key = _key(members[0])
    if twice := [field for field, count in Counter(_split_name(member)[1] for member in members).items() if count > 1]:
        message = f"the sample has {twice[:5]!r:.200} twice. Keep one of each."
        return BadRowError("ROW_MALFORMED", message, key)
    if link := next((member.name for member in members if not member.isfile()), None):
        cure = "Write the file itself: tar --dereference --hard-dereference."
        return BadRowError("ROW_MALFORMED", f"{link!r:.200} is a link. {cure}", key)
    images = [member.name for member in members if member.name.lower().endswith(IMAGE_SUFFIXES)]
    if len(images) > 1:
        message = f"the sample has the images {images[:5]!r:.200}; an item has one. Split the sample."
        return BadRowError("ROW_MALFORMED", message, key)
    fields: dict[str, Any] = {KEY: key}
    for member in members:
        name = _split_name(member)[1]
        try:
            data = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file, no folder
        except (tarfile.TarError, OSError) as error:
            message = f"{member.name!r:.200} cannot be read ({error}). Write the file again."
            return BadRowError("ROW_MALFORMED", message, key)
        if member.name in images:
            fields["image"] = data
        elif name == "json":
            told = parse_object(data)
            if isinstance(told, BadRowError):
                return BadRowError(told.code, f"{member.name!r:.200}: {told}", key)
            fields = {**told, **fields}
        else:
            fields["text" if name == "txt" else name] = _decode(data)
    return fields


def _decode(data: bytes) -> str | bytes:
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        return data
