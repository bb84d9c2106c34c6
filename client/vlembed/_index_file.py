"""The file of a FAISS index: written whole or not at all, and read only if it is whole.

    FAISS's index | ids, a line of JSON each | metadata, likewise | manifest, JSON | trailer
    trailer = size of the manifest, uint64 | its CRC-32, uint32 | format, uint32 | magic, 8 bytes; little-endian

The manifest has the sizes and CRC-32s of what comes before it. FAISS's part is first, so that FAISS can map the file.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from ._exceptions import InvalidInputError
from ._files import replacing
from ._store import IndexInfo

Take: TypeAlias = Callable[[bytes], object]

MAGIC = b"vlembed\n"
FORMAT = 1
TRAILER = struct.Struct("<QII8s")
CHUNK_BYTES = 1 << 20


@dataclass
class Part:
    """A stretch of the file, as it is written or as the manifest tells of it."""

    size: int = 0
    crc32: int = 0

    def count(self, data: bytes) -> None:
        self.size += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


@dataclass(frozen=True)
class Content:
    """What a file holds beside FAISS's part."""

    info: IndexInfo
    ids: Sequence[str | None]
    metadata: Sequence[str]


def write(path: Path, content: Content, write_faiss: Callable[[Take], object]) -> None:
    """Write a file; whoever opens the path meanwhile, or after a crash, finds the old one.

    Parameters
    ----------
    path
        Of the file, which is replaced if it is there.
    content
        All but FAISS's part.
    write_faiss
        Called with the function that takes the bytes of FAISS's part.
    """
    with replacing(path) as file:

        def written(produce: Callable[[Take], object]) -> dict[str, int]:
            part = Part()

            def take(data: bytes) -> None:
                file.write(data)
                part.count(data)

            produce(take)
            return vars(part)

        manifest = {
            "info": content.info.to_json(),
            "num_rows": len(content.ids),
            "parts": [
                written(write_faiss),
                written(lambda take: take("\n".join(map(_line, content.ids)).encode())),
                written(lambda take: take("\n".join(content.metadata).encode())),
            ],
        }
        data = json.dumps(manifest).encode()
        file.write(data + TRAILER.pack(len(data), zlib.crc32(data), FORMAT, MAGIC))


def read(path: Path, file: IO[bytes]) -> Content:
    """Check every byte of an opened file and return what it holds; FAISS's part is left to FAISS.

    Raises
    ------
    InvalidInputError
        It is no such file, a newer one, or damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TRAILER.size))
    trailer = file.read(TRAILER.size)
    if len(trailer) < TRAILER.size or trailer[-len(MAGIC) :] != MAGIC:
        raise InvalidInputError(
            f"{str(path)!r} ends in {trailer[-len(MAGIC) :]!r}: it is no index that Index.save wrote, or not all of "
            "one. Pass the path of one, or copy it again."
        )
    manifest_size, manifest_crc32, version, _ = TRAILER.unpack(trailer)
    if version != FORMAT:
        raise InvalidInputError(
            f"{str(path)!r} has format {version}; this version of vlembed reads {FORMAT}. Upgrade vlembed."
        )
    start = size - TRAILER.size - manifest_size
    file.seek(max(0, start))
    data = file.read(manifest_size) if start >= 0 else b""
    if zlib.crc32(data) != manifest_crc32 or not data:
        raise _damaged(path, "manifest")
    try:
        manifest = json.loads(data)
        parts = [Part(**part) for part in manifest["parts"]]
        info, num_rows = IndexInfo.from_json(manifest["info"]), manifest["num_rows"]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{str(path)!r} was written by another version of vlembed ({error}). Upgrade vlembed."
        ) from error
    if sum(part.size for part in parts) != start:
        raise _damaged(path, "size")
    file.seek(0)
    _, ids, metadata = (
        _checked(path, file, part, name, is_kept=name != "vectors")
        for part, name in zip(parts, ("vectors", "ids", "metadata"), strict=True)
    )
    file.seek(0)
    return Content(
        info=info,
        ids=json.loads(f"[{','.join(ids.decode().split(chr(10)))}]") if num_rows else [],
        metadata=metadata.decode().split("\n") if num_rows else [],
    )


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _checked(path: Path, file: IO[bytes], part: Part, name: str, *, is_kept: bool) -> bytes:
    """Read a part, and return it unless it is only to be checked."""
    seen, kept = Part(), []
    while data := file.read(min(CHUNK_BYTES, part.size - seen.size)):
        seen.count(data)
        if is_kept:
            kept.append(data)
    if seen != part:
        raise _damaged(path, name)
    return b"".join(kept)


def _damaged(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{str(path)!r} is damaged: its {what} is not what was written. Copy the file again, or build the index again."
    )
