"""Pixels, bit for bit against transformers' Pillow processor, and what is refused of hostile images."""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib

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


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_against_transformers(image_format: str) -> None:
    assert_same_as_transformers(encode(image(130, 90), image_format))


def test_normalised_values_against_transformers() -> None:
    data = encode(image(96, 64))
    theirs = np.asarray(processor()(Image.open(io.BytesIO(data)))["pixel_values"], np.float32)
    ours, _ = patches_of(data)
    # transformers rescales, then normalises; the graph does both at once: one rounding of float32 apart
    np.testing.assert_allclose(ours.reshape(theirs.shape).astype(np.float32) / 127.5 - 1, theirs, atol=2e-7)


def test_transparent_palette_and_exif_are_read_as_the_official_script_does() -> None:
    palette = image(64, 64, "P")
    assert_same_as_transformers(encode(palette, transparency=3))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: the official script ignores it
    assert_same_as_transformers(encode(image(96, 64), "JPEG", exif=exif))


def test_first_frame_of_a_gif() -> None:
    first, second = image(64, 64, seed=1), image(64, 64, seed=2)
    data = encode(first, "GIF", save_all=True, append_images=[second])
    assert_same_as_transformers(data)


def test_bytes_and_data_uri_agree() -> None:
    data = encode(image())
    wrapped = b" data:;base64,\n" + base64.encodebytes(data)  # as MIME has it, and without a label
    np.testing.assert_array_equal(patches_of(data)[0], patches_of(wrapped)[0])
    np.testing.assert_array_equal(patches_of(data)[0], patches_of(data_uri(data))[0])
    jpeg = encode(image(), "JPEG")
    np.testing.assert_array_equal(patches_of(jpeg)[0], patches_of(data_uri(jpeg, "image/jpg"))[0])


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def frames(image_format: str) -> bytes:
    return encode(image(64, 64), image_format, save_all=True, append_images=[image(64, 64, seed=1)])


def jpeg_of_scans(num_scans: int) -> bytes:
    """Return a progressive JPEG with many empty scans: a small file that would take minutes to decode."""
    data = encode(image(200, 200), "JPEG", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"  # one component, AC coefficients 1 ... 63
    return data[:-2] + scan * num_scans + data[-2:]


PNG, JPEG = encode(image()), encode(image(200, 200), "JPEG")
BAD = {
    "a PDF": (b"%PDF-1.7 not an image", "IMAGE_UNDECODABLE", "%PDF"),
    "text": (b"eine Katze", "IMAGE_UNDECODABLE", "JPEG, PNG"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_UNDECODABLE", "<svg"),
    "a cut PNG": (PNG[: len(PNG) // 2], "IMAGE_TRUNCATED", "truncated"),
    "a cut JPEG": (JPEG[: len(JPEG) // 2], "IMAGE_TRUNCATED", "truncated"),
    "a PNG's header alone": (PNG[:20], "IMAGE_UNDECODABLE", "20 bytes"),
    "an animated PNG": (frames("PNG"), "IMAGE_ANIMATED", "frame"),
    "an animated WebP": (frames("WEBP"), "IMAGE_ANIMATED", "frame"),
    "a TIFF of two pages": (frames("TIFF"), "IMAGE_ANIMATED", "frame"),
    "a zero-sized PNG": (png_header(0, 5), "IMAGE_UNDECODABLE", "no pixels"),
    "a pixel bomb": (png_header(60_000, 60_000), "IMAGE_TOO_LARGE", "67108864"),
    "one pixel row too many": (png_header(8192, 8193), "IMAGE_TOO_LARGE", "8192 x 8193"),
    "a strip over 200:1": (encode(image(201, 1)), "IMAGE_RATIO", "201 x 1"),
    "a JPEG of many scans": (jpeg_of_scans(200), "IMAGE_TOO_COMPLEX", "the server takes 100"),
    "a JPEG labelled PNG": (data_uri(JPEG, "image/png"), "IMAGE_MISLABELLED", "image/jpeg"),
    "a PNG labelled text": (data_uri(PNG, "text/plain"), "IMAGE_MISLABELLED", "text/plain"),
    "a data: URI of nothing": (b"data:image/png;base64,", "IMAGE_EMPTY", "no bytes"),
    "a data: URI without base64": (b"data:image/png,rawbytes", "IMAGE_UNDECODABLE", ";base64"),
    "a data: URI of bad base64": (b"data:image/png;base64,@@@", "IMAGE_UNDECODABLE", "base64"),
    "a URL": (b"https://example.org/cat.png", "IMAGE_IS_URL", "https://example.org/cat.png"),
    "a file URL": (b"file:///etc/passwd", "IMAGE_IS_URL", "fetches nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused(name: str) -> None:
    data, code, says = BAD[name]
    with pytest.raises(ItemError) as caught:
        patches_of(data)
    assert caught.value.code == code
    assert says in str(caught.value)


def test_decoded_pixels_are_given_back() -> None:
    opened = open_image(encode(image()), **LIMITS)
    write_patches(opened, np.empty((opened.num_tokens, PATCH_SIZE), np.uint8))
    with pytest.raises(ValueError, match="closed"):
        opened.image.getpixel((0, 0))


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(ItemError, match="has 101 bytes; the server takes 100"):
        patches_of(b"\0" * 101, max_image_bytes=100)
    with pytest.raises(ItemError, match="the server takes 100"):
        patches_of(data_uri(b"\0" * 300), max_image_bytes=100)
