"""Pixels to PNG, and the size of an encoded image from its header, without an image library.

Knows formats; knows nothing of items or servers. PNG loses nothing, so every spelling of an image gives one vector.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what PNG holds and the server reads back unchanged
PNG_COLOUR_TYPES = {3: 2, 4: 6}  # of RGB and RGBA
COMPRESS_LEVEL = 1  # the network is faster than zlib's higher levels
JPEG_SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, of any coding


class PillowImage(Protocol):
    """What is used of a `PIL.Image.Image`; Pillow itself is not imported."""

    @property
    def mode(self) -> str:
        """The kind of its pixels."""

    def convert(self, mode: str) -> PillowImage:
        """Return it in another mode."""

    def save(self, fp: IO[bytes], format: str, **params: Any) -> None:  # noqa: A002
        """Encode it."""


def encode_array(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode RGB or RGBA pixels (H, W, 3 or 4) as PNG."""
    height, width, num_channels = pixels.shape
    rows = np.zeros((height, 1 + width * num_channels), np.uint8)  # each row begins with its filter, 0 = none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR_TYPES[num_channels], 0, 0, 0)
    data = zlib.compress(rows.tobytes(), COMPRESS_LEVEL)
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def encode_pillow(image: PillowImage) -> bytes:
    """Encode a PIL image as PNG; a mode that PNG lacks becomes RGB here, as it would on the server."""
    buffer = io.BytesIO()
    image = image if image.mode in PNG_MODES else image.convert("RGB")
    image.save(buffer, "PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def read_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height, px, of a PNG, JPEG or GIF; None for anything else, or if the header is broken."""
    size = None
    try:
        if data.startswith(PNG_SIGNATURE):
            size = struct.unpack_from(">II", data, 16)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            size = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"\xff\xd8"):
            size = _read_jpeg_size(data)
    except struct.error:
        return None
    return size if size and all(size) else None


def _read_jpeg_size(data: bytes) -> tuple[int, int] | None:
    offset = 2
    while True:
        start, marker, length = struct.unpack_from(">BBH", data, offset)
        if start != 0xFF:
            return None
        if marker in JPEG_SIZE_MARKERS:
            height, width = struct.unpack_from(">HH", data, offset + 5)
            return width, height
        offset += 2 + length
