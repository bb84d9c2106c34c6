"""Pixels to PNG as they are shown, and the size of an encoded image from its header, without an image library.

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
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # what PNG holds and the server reads back unchanged
PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # of grey, RGB and RGBA
ORIENTATION = 0x0112  # the tag of EXIF
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1  # their values
COMPRESS_LEVEL = 1  # the network is faster than zlib's higher levels
JPEG_SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, of any coding


class NoRangeError(ValueError):
    """An image's samples do not say which of them is black and which is white."""


class PillowImage(Protocol):
    """What is used of a `PIL.Image.Image`; Pillow itself is not imported."""

    @property
    def mode(self) -> str:
        """The kind of its pixels."""

    @property
    def info(self) -> dict[Any, Any]:
        """What its file says beside them."""

    @property
    def format(self) -> str | None:
        """The format of the file that it was opened from; None of an image that was computed."""

    def load(self) -> Any:
        """Decode its pixels."""

    def getexif(self) -> Any:
        """Return a mapping of EXIF tags to values."""

    def convert(self, mode: str) -> PillowImage:
        """Return it in another mode."""

    def save(self, fp: IO[bytes], format: str, **params: Any) -> None:  # noqa: A002
        """Encode it."""


def encode_array(pixels: npt.NDArray[np.uint8], exif: bytes | None = None) -> bytes:
    """Encode grey, RGB or RGBA pixels (H, W, 1, 3 or 4) as PNG."""
    height, width, num_channels = pixels.shape
    rows = np.zeros((height, 1 + width * num_channels), np.uint8)  # each row begins with its filter, 0 = none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR_TYPES[num_channels], 0, 0, 0)
    data = zlib.compress(rows.tobytes(), COMPRESS_LEVEL)
    chunks = [_chunk(b"IHDR", header), *([_chunk(b"eXIf", exif)] if exif else []), _chunk(b"IDAT", data)]
    return PNG_SIGNATURE + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def encode_pillow(image: PillowImage) -> bytes:
    """Encode a PIL image as PNG: its pixels as they are shown, and its orientation if it was opened from a file.

    Of its metadata nothing else goes along. A mode that PNG lacks becomes RGB here, as it would on the server.

    Raises
    ------
    NoRangeError
        Its samples have no defined range: they are floats, or integers of 32 bits that no file explains.
    """
    image.load()  # a TIFF is turned as it is read
    exif = _exif_of(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return encode_array(_grey_of(image), exif)
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    if image.mode in ("PA", "RGBa") or (image.mode != "RGBA" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode not in PNG_MODES:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESS_LEVEL, icc_profile=None, exif=exif)
    return buffer.getvalue()


def _exif_of(image: PillowImage) -> bytes | None:
    """Return an EXIF block that names the orientation alone, None if there is nothing to turn.

    The server turns it, or not, as it does with files. An image that was computed is taken as it is.
    """
    if image.format is None or "exif" not in image.info:
        return None
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises anything on a broken block, which says nothing
        return None
    if orientation not in range(2, 9):
        return None
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def _grey_of(image: PillowImage) -> npt.NDArray[np.uint8]:
    """Scale samples of more than 8 bits by their depth, uint8 (H, W, 1)."""
    tags = getattr(image, "tag_v2", {})
    is_unsigned = image.format == "PNG" or (tags and tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED)
    if image.mode == "F" or (image.mode == "I" and not is_unsigned):
        raise NoRangeError(f"mode {image.mode} does not say which number is black and which is white")
    samples = np.asarray(image).astype(np.uint32)
    grey = (samples >> (tags.get(TIFF_BITS, (16,))[0] - 8)).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey[samples == transparent] = 255
    pixels: npt.NDArray[np.uint8] = grey[:, :, None]
    return pixels


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
