"""Our PNG against Pillow's, and sizes out of headers against Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from decode import read_picture, to_rgb
from tests.samples import MODES, encode, image
from vlembed._images import NoRangeError, encode_array, encode_pillow, read_size


def decode(data: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(data))
    opened.load()
    return opened


def assert_same_picture(data: bytes, theirs: Image.Image, *, exif_orientation: bool = True) -> None:
    ours = read_picture(data, exif_orientation=exif_orientation).decode()
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


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


@pytest.mark.parametrize("mode", [*MODES, "YCbCr", "HSV", "LAB", "RGBX", "PA", "La", "RGBa"])
def test_the_server_sees_the_same_pixels_in_every_mode(mode: str) -> None:
    picture = image(40, 30, "RGBA").convert({"PA": "P", "La": "LA", "LAB": "RGB"}.get(mode, mode))
    if mode == "LAB":
        picture = ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    picture = picture.convert(mode)
    assert picture.mode == mode
    assert_same_picture(encode_pillow(picture), to_rgb(picture))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description " * 500
    return exif


GREY = np.asarray(image(40, 30, "L"))
FILES = {
    "JPEG, turned": encode(image(40, 30), "JPEG", exif=exif_of(6)),
    "PNG, mirrored": encode(image(40, 30), "PNG", exif=exif_of(2)),
    "WebP, turned": encode(image(40, 30), "WEBP", exif=exif_of(8), lossless=True),
    "TIFF, turned": encode(image(40, 30), "TIFF", exif=exif_of(6)),
    "AVIF, turned": encode(image(40, 30), "AVIF", exif=exif_of(6)),
    "JPEG, broken EXIF": encode(image(40, 30), "JPEG", exif=b"Exif\0\0garbage"),
    "PNG of 16 bits": encode(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "TIFF of 16 bits": encode(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "transparent palette": encode(image(40, 30, "P"), transparency=3),
    "palette with alpha": encode(image(40, 30, "P"), transparency=bytes(range(64))),
    "transparent GIF": encode(image(40, 30, "P"), "GIF", transparency=3),
    "transparent grey": encode(image(40, 30, "L"), transparency=int(GREY[0, 0])),
    "transparent colour": encode(image(40, 30), transparency=image(40, 30).getpixel((0, 0))),
    "CMYK": encode(image(40, 30, "CMYK"), "JPEG"),
}


@pytest.mark.parametrize("exif_orientation", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_an_opened_file_is_the_file(name: str, exif_orientation: bool) -> None:
    theirs = read_picture(FILES[name], exif_orientation=exif_orientation).decode()
    with Image.open(io.BytesIO(FILES[name])) as opened:
        assert_same_picture(encode_pillow(opened), theirs, exif_orientation=exif_orientation)


def test_a_computed_image_is_taken_as_it_is() -> None:
    with Image.open(io.BytesIO(FILES["JPEG, turned"])) as opened:
        computed = opened.rotate(0)
    assert "exif" in computed.info
    assert_same_picture(encode_pillow(computed), computed)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(NoRangeError, match=f"mode {mode} does not say"):
        encode_pillow(image(40, 30, "L").convert(mode))


def test_metadata_stay_at_home() -> None:
    profile = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8).tobytes()
    with Image.open(io.BytesIO(encode(image(40, 30), "JPEG", icc_profile=profile, exif=exif_of(6)))) as opened:
        opened.info["dpi"] = (300, 300)
        data = encode_pillow(opened)
    names, offset = [], 8
    while offset < len(data):
        names.append(data[offset + 4 : offset + 8].decode())
        offset += 12 + int.from_bytes(data[offset : offset + 4], "big")
    assert names == ["IHDR", "eXIf", "IDAT", "IEND"]
    assert b"a description" not in data


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("PNG", {}), ("GIF", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"comment": b"x" * 999})],
)
def test_sizes_are_read(image_format: str, options: dict[str, object]) -> None:
    assert read_size(encode(image(123, 45), image_format, **options)) == (123, 45)


@pytest.mark.parametrize("image_format", ["WEBP", "AVIF", "BMP", "TIFF"])
def test_other_headers_are_not_read(image_format: str) -> None:
    assert read_size(encode(image(), image_format)) is None


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "JPEG"])
def test_broken_headers_are_no_size(image_format: str) -> None:
    data = encode(image(), image_format)
    for end in range(6):
        assert read_size(data[:end]) is None
    assert read_size(encode(image(), "PNG")[:16] + bytes(8)) is None
    assert read_size(b"\xff\xd8" + bytes(50)) is None
