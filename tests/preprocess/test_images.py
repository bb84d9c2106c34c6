"""Patches, bit for bit against transformers' Pillow processor."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from images import PATCH_SIZE, ItemError, open_image, write_patches
from tests.reference import MAX_PIXELS, MIN_PIXELS, load_rgb, processor
from tests.samples import MODES, data_uri, encode, image

LIMITS = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "max_image_bytes": 20_971_520, "max_image_pixels": 2**26}
SIZES = [
    *[(16, 16), (17, 31), (32, 32), (33, 65), (64, 64), (100, 75), (224, 224), (336, 336), (640, 480), (1024, 1024)],
    *[(1280, 720), (1920, 1080), (2339, 1654), (4000, 3000), (48, 9600), (3200, 16), (16, 3200), (1, 200), (7, 1)],
]


def patches_of(data: bytes, **limits: int) -> tuple[np.ndarray, tuple[int, int]]:
    opened = open_image(data, **{**LIMITS, **limits})
    patches = np.empty((opened.num_tokens, PATCH_SIZE), np.uint8)
    write_patches(opened, patches)
    return patches, opened.grid


def assert_same_as_transformers(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    raw = processor(max_pixels, do_rescale=False, do_normalize=False)(load_rgb(Image.open(io.BytesIO(data))))
    theirs, grid = np.asarray(raw["pixel_values"]), np.asarray(raw["image_grid_thw"])[0]
    ours, (rows, columns) = patches_of(data, max_pixels=max_pixels)
    assert (1, 2 * rows, 2 * columns) == tuple(grid)
    np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(96, 64), (201, 333)])
def test_modes_against_transformers(mode: str, size: tuple[int, int]) -> None:
    picture = image(*size, mode=mode)
    data = encode(picture, "TIFF" if mode == "CMYK" else "PNG")
    assert Image.open(io.BytesIO(data)).mode == mode
    assert_same_as_transformers(data)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_sizes_against_transformers(size: tuple[int, int]) -> None:
    assert_same_as_transformers(encode(image(*size), "JPEG" if math.prod(size) > 2**20 else "PNG"))


@pytest.mark.parametrize("max_pixels", [4096, 65_536, 1_000_000])
def test_max_pixels_against_transformers(max_pixels: int) -> None:
    assert_same_as_transformers(encode(image(900, 700)), max_pixels)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_formats_against_transformers(image_format: str) -> None:
    assert_same_as_transformers(encode(image(130, 90), image_format))


def test_normalised_values_against_transformers() -> None:
    data = encode(image(96, 64))
    theirs = np.asarray(processor()(Image.open(io.BytesIO(data)))["pixel_values"], np.float32)
    ours, _ = patches_of(data)
    # transformers rescales, then normalises; the graph does both at once: one rounding of float32 apart
    np.testing.assert_allclose(ours.reshape(theirs.shape).astype(np.float32) / 127.5 - 1, theirs, atol=2e-7)


def test_pictures_as_shown_against_transformers() -> None:
    palette = image(64, 64, "P")
    assert_same_as_transformers(encode(palette, transparency=3))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        assert_same_as_transformers(encode(image(96, 64), image_format, exif=exif))


def test_first_frame_of_a_gif() -> None:
    first, second = image(64, 64, seed=1), image(64, 64, seed=2)
    data = encode(first, "GIF", save_all=True, append_images=[second])
    assert_same_as_transformers(data)


def test_decoded_pixels_are_given_back() -> None:
    opened = open_image(encode(image()), **LIMITS)
    write_patches(opened, np.empty((opened.num_tokens, PATCH_SIZE), np.uint8))
    with pytest.raises(ValueError, match="closed"):
        opened.picture.image.getpixel((0, 0))


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(ItemError, match="has 101 bytes; the server takes 100"):
        patches_of(b"\0" * 101, max_image_bytes=100)
    with pytest.raises(ItemError, match="the server takes 100"):
        patches_of(data_uri(b"\0" * 300), max_image_bytes=100)
