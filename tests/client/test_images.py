"""Our PNG against Pillow's, and sizes out of headers against Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from images import to_rgb
from tests.samples import MODES, encode, image
from vlembed._images import encode_array, encode_pillow, read_size


def decode(data: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(data))
    opened.load()
    return opened


@pytest.mark.parametrize("size", [(1, 1), (96, 64), (3, 500)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_arrays_lose_nothing(mode: str, size: tuple[int, int]) -> None:
    pixels = np.asarray(image(*size, mode))
    decoded = decode(encode_array(pixels))
    assert (decoded.format, decoded.mode) == ("PNG", mode)
    np.testing.assert_array_equal(np.asarray(decoded), pixels)


def test_strided_arrays() -> None:
    pixels = np.asarray(image(96, 64))[::2, ::-1]
    np.testing.assert_array_equal(np.asarray(decode(encode_array(pixels))), pixels)


@pytest.mark.parametrize("mode", [*MODES, "YCbCr", "HSV", "RGBX"])
def test_the_server_sees_the_same_pixels_in_every_mode(mode: str) -> None:
    picture = image(40, 30, mode)
    ours, theirs = to_rgb(decode(encode_pillow(picture))), to_rgb(picture)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("PNG", {}), ("GIF", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"comment": b"x" * 999})],
)
def test_sizes_are_read(image_format: str, options: dict[str, object]) -> None:
    assert read_size(encode(image(123, 45), image_format, **options)) == (123, 45)


@pytest.mark.parametrize("image_format", ["WEBP", "BMP", "TIFF"])
def test_other_headers_are_not_read(image_format: str) -> None:
    assert read_size(encode(image(), image_format)) is None


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "JPEG"])
def test_broken_headers_are_no_size(image_format: str) -> None:
    data = encode(image(), image_format)
    for end in range(6):
        assert read_size(data[:end]) is None
    assert read_size(encode(image(), "PNG")[:16] + bytes(8)) is None
    assert read_size(b"\xff\xd8" + bytes(50)) is None
