"""The structure of a WebP file: the chunks that its pixels depend on. Profiles, EXIF and XMP are left out."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from errors import AGAIN, ItemError
from orientation import UPRIGHT, read_orientation

PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM")  # with VP8X and ANMF all that pixels depend on
ALPHA, ANIMATION = 0x10, 0x02  # flags of VP8X that stay
MAX_CHUNKS = 10_000


@dataclass(frozen=True)
class Webp:
    """What is read of a WebP file."""

    data: bytes  # without what no pixel depends on
    orientation: int
    num_frames: int


def read_webp(data: bytes) -> Webp:
    """Walk the chunks of a WebP file.

    Raises
    ------
    ItemError
        It is cut short, or has too many chunks.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    kept: list[bytes] = []
    orientation, num_frames = UPRIGHT, 0
    offset = 12
    for _ in range(MAX_CHUNKS):
        if offset + 8 > min(end, len(data)):
            break
        name, size_bytes = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        content = data[offset + 8 : offset + 8 + size_bytes]
        if name in (*PIXELS, b"VP8X", b"ANMF"):
            if len(content) < size_bytes:
                raise _cut_short(f"chunk {name.decode().strip()} of {size_bytes} bytes at {offset} of {len(data)}")
            if name == b"VP8X":
                content = bytes([content[0] & (ALPHA | ANIMATION)]) + content[1:] if content else content
            num_frames += name in (b"VP8 ", b"VP8L", b"ANMF")
            kept.append(name + struct.pack("<I", size_bytes) + content + b"\0" * (size_bytes % 2))
        elif name == b"EXIF":
            orientation = read_orientation(content)
        offset += 8 + size_bytes + size_bytes % 2
    else:
        raise ItemError("IMAGE_TOO_COMPLEX", f"image is a WebP of more than {MAX_CHUNKS} chunks. Encode it again.")
    if not num_frames:
        raise _cut_short(f"no pixels in its {len(data)} bytes")
    body = b"WEBP" + b"".join(kept)
    return Webp(b"RIFF" + struct.pack("<I", len(body)) + body, orientation, num_frames)


def _cut_short(where: str) -> ItemError:
    return ItemError("IMAGE_TRUNCATED", f"image is a WebP that is cut short, truncated ({where}). {AGAIN}")
