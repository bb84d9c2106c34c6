"""The structure of a PNG file: the chunks that its pixels depend on.

All other chunks (profiles, texts, times) are left out unread, so that they decide nothing. Knows nothing of filters and
colours.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from data_uri import ENCODED
from errors import AGAIN, ItemError
from orientation import UPRIGHT, read_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CRITICAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # what pixels depend on
MAX_CHUNKS = 100_000  # encoders make one of 8 KiB, or one in all


@dataclass(frozen=True)
class Png:
    """What is read of a PNG file."""

    data: bytes  # without what no pixel depends on
    orientation: int
    num_frames: int
    depth: int  # bits of a sample
    colour_type: int
    is_interlaced: bool


def read_png(data: bytes) -> Png:
    """Walk the chunks of a PNG file up to its end, which may be missing.

    Raises
    ------
    ItemError
        It is cut short or has no header, a chunk that pixels depend on has a wrong checksum, or there are too many.
    """
    kept = [SIGNATURE]
    has_pixels = False
    orientation, num_frames = UPRIGHT, 1
    header = b""
    offset = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        name, size_bytes = data[offset + 4 : offset + 8], int.from_bytes(data[offset : offset + 4], "big")
        end = offset + 12 + size_bytes
        if name == b"IEND" or offset >= len(data):
            break
        if name == b"CgBI":
            raise ItemError(
                "IMAGE_UNDECODABLE",
                f"image is a PNG in Apple's own variant (chunk CgBI), made for iOS alone. {ENCODED}",
            )
        content = data[offset + 8 : offset + 8 + size_bytes]
        if end > len(data) and name == b"IDAT":  # what is there may be all that is needed
            kept.append(_chunk(name, content))
            has_pixels = True
        elif end > len(data) and name in CRITICAL:
            break
        elif name in CRITICAL:
            if data[offset:end] != _chunk(name, content):
                raise ItemError(
                    "IMAGE_UNDECODABLE", f"image is a PNG whose chunk {name.decode()} has a wrong checksum. {AGAIN}"
                )
            kept.append(data[offset:end])
            header = content if name == b"IHDR" else header
            has_pixels |= name == b"IDAT"
        elif name == b"eXIf":
            orientation = read_orientation(content)
        elif name == b"acTL":
            num_frames = int.from_bytes(content[:4], "big")
        offset = end
    else:
        raise ItemError("IMAGE_TOO_COMPLEX", f"image is a PNG of more than {MAX_CHUNKS} chunks. Encode it again.")
    if len(header) != 13:
        raise ItemError("IMAGE_UNDECODABLE", f"image is a PNG without a header, of {len(data)} bytes. {AGAIN}")
    if not has_pixels:
        raise ItemError("IMAGE_TRUNCATED", f"image is a PNG that is cut short, truncated before its pixels. {AGAIN}")
    depth, colour_type, _, _, interlace = header[8:]
    return Png(
        b"".join([*kept, _chunk(b"IEND", b"")]),
        orientation,
        num_frames,
        depth,
        colour_type,
        bool(interlace),
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
