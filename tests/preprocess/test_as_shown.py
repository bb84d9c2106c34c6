"""The vector is of the picture that a viewer shows: upright, over white, deep samples scaled to 8 bits."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from decode import read_picture
from errors import ItemError
from images import PATCH_SIZE, open_image, write_patches
from tests.samples import encode, image

ORIENTATION = 0x0112
LIMITS = {"min_pixels": 4096, "max_pixels": 1_843_200, "max_image_bytes": 20_971_520, "max_image_pixels": 2**26}
GREY = np.asarray(image(40, 30, "L"))


def shown(data: bytes, *, exif_orientation: bool = True) -> np.ndarray:
    """Return what is embedded, uint8 (H, W, 3)."""
    return np.asarray(read_picture(data, exif_orientation=exif_orientation).decode())


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("RGB"))


# --- deep samples ---


def png(pixels: bytes, width: int, height: int, depth: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of rows without filters; what Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row_bytes = len(pixels) // height
    rows = b"".join(b"\0" + pixels[i * row_bytes : (i + 1) * row_bytes] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            *(chunk(*item) for item in chunks),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(pixels: np.ndarray, depth: int, order: str = "<", photometric: int = 1, sample_format: int = 1) -> bytes:
    """Return an uncompressed grey TIFF of one strip; what Pillow cannot write."""
    height, width = pixels.shape
    if depth == 12:
        bits = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[:, :, 4:]
        data = np.packbits(bits.reshape(height, -1), axis=1).tobytes()
    else:
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, depth), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1)
        + struct.pack(order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value]))
        for tag, kind, value in tags
    )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return (
        magic
        + struct.pack(order + "I", 8 + len(data))
        + data
        + struct.pack(order + "H", len(tags))
        + entries
        + bytes(4)
    )


DEEP = {
    "PNG of 16 bits": encode(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "PNG of 16 bits, shifted": encode(Image.fromarray(GREY.astype(np.uint16) << 8)),
    "TIFF of 16 bits": encode(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "TIFF of 16 bits, compressed": encode(
        Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", compression="tiff_lzw"
    ),
    "TIFF of 16 bits, big-endian": tiff(GREY.astype(np.uint16) * 257, 16, ">"),
    "TIFF of 16 bits, white is zero": tiff(65535 - GREY.astype(np.uint16) * 257, 16, photometric=0),
    "TIFF of 12 bits": tiff(GREY.astype(np.uint16) << 4, 12),
    "TIFF of 32 bits": tiff(GREY.astype(np.uint32) << 24 | 0xFFFFFF, 32),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_is_scaled(name: str) -> None:
    np.testing.assert_array_equal(shown(DEEP[name]), as_rgb(GREY))


def test_deep_colours_are_scaled() -> None:
    pixels = np.asarray(image(40, 30))
    deep = (pixels.astype(">u2") * 257).astype(">u2").tobytes()
    np.testing.assert_array_equal(shown(png(deep, 40, 30, 16, 2)), pixels)


@pytest.mark.parametrize("name", ["floats", "signed 16", "signed 32"])
def test_samples_without_a_range_are_refused(name: str) -> None:
    data = {
        "floats": encode(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        "signed 16": tiff(GREY.astype(np.int16), 16, sample_format=2),
        "signed 32": encode(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
    }[name]
    with pytest.raises(ItemError, match=r"which is black .* Scale them") as caught:
        shown(data)
    assert caught.value.code == "IMAGE_NO_RANGE"


# --- transparency ---

COLOURS = image(40, 30, "RGB")
HOLE = (slice(5, 20), slice(10, 30))  # rows, columns


def over_white(pixels: np.ndarray) -> np.ndarray:
    expected = pixels.copy()
    expected[HOLE] = 255
    return expected


def with_hole(mode: str) -> Image.Image:
    """Return a picture that is transparent in a rectangle, black under it, without semi-transparent pixels."""
    alpha = np.full((30, 40), 255, np.uint8)
    alpha[HOLE] = 0
    rgba = COLOURS.copy()
    rgba.paste((0, 0, 0), (10, 5, 30, 20))
    rgba.putalpha(Image.fromarray(alpha))
    return rgba if mode == "RGBA" else rgba.convert(mode)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_channels_go_over_white(mode: str, image_format: str) -> None:
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    data = encode(with_hole(mode), image_format, **options.get(image_format, {}))
    opened = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))  # as decoded, black in the hole
    ours = shown(data)
    assert (ours[HOLE] == 255).all()
    np.testing.assert_array_equal(ours, over_white(opened))


def indexed() -> tuple[Image.Image, np.ndarray]:
    """Return a picture of 16 colours whose colour 3 fills the hole alone, and its RGB."""
    palette = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8)
    palette[3] = 0
    indices = np.random.default_rng(1).integers(4, 16, (30, 40)).astype(np.uint8)
    indices[HOLE] = 3
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(palette.ravel().tolist())
    return picture, palette[indices]


@pytest.mark.parametrize(
    ("image_format", "transparency"), [("PNG", 3), ("PNG", b"\xff\xff\xff\0"), ("GIF", 3)], ids=["PNG", "alpha", "GIF"]
)
def test_transparent_palettes_go_over_white(image_format: str, transparency: object) -> None:
    picture, pixels = indexed()
    ours = shown(encode(picture, image_format, transparency=transparency))
    np.testing.assert_array_equal(ours, over_white(pixels))


def test_what_a_gifs_frame_does_not_cover_is_white() -> None:
    picture, pixels = indexed()
    data = bytearray(encode(picture, "GIF"))
    struct.pack_into("<HH", data, 6, 60, 50)  # a larger canvas
    start = 13 + 3 * (2 << (data[10] & 7))
    at = data.index(b"\x2c\0\0\0\0", start)
    struct.pack_into("<HH", data, at + 1, 7, 9)  # the frame's place
    ours = shown(bytes(data))
    np.testing.assert_array_equal(ours[9:39, 7:47], pixels)
    ours = ours.copy()
    ours[9:39, 7:47] = 255
    assert ours.shape == (50, 60, 3) and (ours == 255).all()


@pytest.mark.parametrize("colour_type", [4, 6])
def test_deep_pictures_with_alpha_go_over_white(colour_type: int) -> None:
    channels = np.asarray(with_hole("LA" if colour_type == 4 else "RGBA"))
    data = png((channels.astype(">u2") * 257).astype(">u2").tobytes(), 40, 30, 16, colour_type)
    opaque = channels[:, :, :-1]
    np.testing.assert_array_equal(shown(data), over_white(np.broadcast_to(opaque, (30, 40, 3))))


def test_half_transparent_palettes_are_blended() -> None:
    picture, pixels = indexed()
    ours = shown(encode(picture, transparency=bytes([255, 255, 255, 128])))
    assert set(ours[HOLE].ravel().tolist()) == {127}
    assert (np.delete(ours, np.s_[5:20], axis=0) == np.delete(pixels, np.s_[5:20], axis=0)).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_goes_over_white(depth: int) -> None:
    top = 2**depth - 1
    values = np.random.default_rng(0).integers(1, top + 1, (30, 40)).astype(np.uint32)
    values[HOLE] = 0
    values[0, :8] = top  # white, which is not the transparent colour
    if depth == 16:
        data = values.astype(">u2").tobytes()
        expected = (values >> 8).astype(np.uint8)
    else:
        bits = np.unpackbits(values.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
        data = np.packbits(bits.reshape(30, -1), axis=1).tobytes()
        expected = (values * 255 // top).astype(np.uint8)
    ours = shown(png(data, 40, 30, depth, 0, (b"tRNS", struct.pack(">H", 0))))
    np.testing.assert_array_equal(ours, over_white(as_rgb(expected)))
    inverted = shown(png(data, 40, 30, depth, 0, (b"tRNS", struct.pack(">H", top))))
    assert (inverted[HOLE] == 0).all() and (inverted[0, :8] == 255).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_goes_over_white(depth: int) -> None:
    pixels = np.asarray(COLOURS).copy()
    pixels[HOLE] = (1, 2, 3)
    scale = 257 if depth == 16 else 1
    data = (pixels.astype(np.uint16) * scale).astype(">u2" if depth == 16 else np.uint8).tobytes()
    colour = struct.pack(">HHH", 1 * scale, 2 * scale, 3 * scale)
    np.testing.assert_array_equal(shown(png(data, 40, 30, depth, 2, (b"tRNS", colour))), over_white(pixels))


# --- orientation ---


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright(image_format: str, orientation: int) -> None:
    data = encode(image(60, 40), image_format, exif=exif_of(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert expected.size == ((40, 60) if orientation >= 5 else (60, 40))
    np.testing.assert_array_equal(shown(data), np.asarray(expected))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_turning_can_be_switched_off(image_format: str) -> None:
    data = encode(image(60, 40), image_format, exif=exif_of(6))
    stored = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(shown(data, exif_orientation=False), stored)


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_the_size_is_that_of_the_upright_picture(image_format: str) -> None:
    turned = open_image(encode(image(320, 64), image_format, exif=exif_of(8)), **LIMITS)
    upright = open_image(encode(image(64, 320), image_format), **LIMITS)
    assert turned.grid == upright.grid == (10, 2)
    patches = np.empty((turned.num_tokens, PATCH_SIZE), np.uint8)
    write_patches(turned, patches)


def test_bytes_of_both_orders_are_read() -> None:
    for order, magic in (("<", b"II*\0"), (">", b"MM\0*")):
        block = magic + struct.pack(order + "IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 6, 0, 0)
        data = encode(image(60, 40), "JPEG", exif=b"Exif\0\0" + block)
        assert shown(data).shape == (60, 40, 3)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "block", [b"garbage of no kind", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff\x01", b""], ids=range(4)
)
def test_a_broken_exif_block_turns_nothing(image_format: str, block: bytes) -> None:
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(image_format, {})
    plain = encode(image(60, 40), image_format, **options)
    if image_format == "AVIF":  # Pillow writes no broken one
        whole = encode(image(60, 40), "AVIF", exif=exif_of(1), **options)
        at = whole.index(b"II*\0") if b"II*\0" in whole else whole.index(b"MM\0*")
        data = whole[:at] + b"\xee" * 12 + whole[at + 12 :]
    else:
        data = encode(image(60, 40), image_format, exif=b"Exif\0\0" + block, **options)
    np.testing.assert_array_equal(shown(data), shown(plain))
