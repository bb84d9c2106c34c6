"""Every spelling of an image's bytes, and what is refused: the format, the true cause and the cure, in few words."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from images import PATCH_SIZE, ItemError, open_image, write_patches
from tests.samples import data_uri, encode, image

LIMITS = {"min_pixels": 4096, "max_pixels": 1_843_200, "max_image_bytes": 20_971_520, "max_image_pixels": 2**26}
MAX_MESSAGE = 600  # characters, whatever comes in
PNG, JPEG = encode(image()), encode(image(200, 200), "JPEG")


def patches_of(data: bytes) -> np.ndarray:
    opened = open_image(data, **LIMITS)
    patches = np.empty((opened.num_tokens, PATCH_SIZE), np.uint8)
    write_patches(opened, patches)
    return patches


# --- data: URIs ---

ENCODED = base64.b64encode(PNG)
assert b"+" in ENCODED and b"/" in ENCODED and ENCODED.endswith(b"=")
SPELLINGS = {
    "the bytes": PNG,
    "labelled": data_uri(PNG),
    "without a label": b"data:;base64," + ENCODED,
    "another case": b"DATA:IMAGE/PNG;BASE64," + ENCODED,
    "with options": b"data:image/png;charset=utf-8;name=a.png;base64," + ENCODED,
    "after spaces": b" \n\tdata:;base64,\n" + ENCODED,
    "lines": b"data:;base64," + base64.encodebytes(PNG),
    "lines of Windows": b"data:;base64," + base64.encodebytes(PNG).replace(b"\n", b"\r\n"),
    "lines that a shell joined": b"data:;base64," + base64.encodebytes(PNG).strip().replace(b"\n", b" "),
    "of the alphabet for URLs": b"data:;base64," + base64.urlsafe_b64encode(PNG),
    "without padding": b"data:;base64," + ENCODED.rstrip(b"="),
    "percent-encoded": b"data:;base64," + ENCODED.replace(b"+", b"%2B").replace(b"/", b"%2f").replace(b"=", b"%3D"),
    **{
        f"labelled {label}": data_uri(PNG, label)
        for label in ("image/*", "image/jpeg", "image/x-png", "image/jpg", "text/plain", "application/pdf", "nonsense")
    },
    "with a long label": data_uri(PNG, "image/" + "x" * 1_000_000),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_an_image_agrees(name: str) -> None:
    np.testing.assert_array_equal(patches_of(SPELLINGS[name]), patches_of(PNG))


# --- what is no image, or none that is taken ---


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def frames(image_format: str) -> bytes:
    return encode(image(64, 64), image_format, save_all=True, append_images=[image(64, 64, seed=1)])


def gif_of_frame(width: int, height: int) -> bytes:
    """Return a GIF of 9 x 9 pixels whose frame claims another size."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0x80, 0, 0) + bytes(6) + frame


def tiff_of_channels(num_channels: int) -> bytes:
    """Return a TIFF that Pillow cannot read for its number of channels."""
    data = bytearray(encode(image(), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0] + 2
    for offset in range(start, start + 12 * 20, 12):
        if struct.unpack_from("<H", data, offset)[0] == 277:
            struct.pack_into("<H", data, offset + 8, num_channels)
            return bytes(data)
    raise AssertionError


def jpeg_of_scans(num_scans: int) -> bytes:
    """Return a progressive JPEG with many empty scans: a small file that would take minutes to decode."""
    data = encode(image(200, 200), "JPEG", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"  # one component, AC coefficients 1 ... 63
    return data[:-2] + scan * num_scans + data[-2:]


PNG, JPEG = encode(image()), encode(image(200, 200), "JPEG")
BAD = {
    "a PDF": (b"%PDF-1.7 not an image", "IMAGE_UNDECODABLE", "is a PDF (first bytes b'%PDF-1.7"),
    "text": (b"eine Katze", "IMAGE_UNDECODABLE", "JPEG, PNG"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_UNDECODABLE", "an SVG"),
    "an SVG with a declaration": (b"<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "IMAGE_UNDECODABLE", "Render it"),
    "an SVG in a data: URI": (data_uri(b"<svg/>", "image/svg+xml"), "IMAGE_UNDECODABLE", "an SVG"),
    "an HTML page": (b"\n<!doctype HTML><html><body>404", "IMAGE_UNDECODABLE", "an HTML page"),
    "an HTML page with a drawing": (b"<html><svg></svg></html>", "IMAGE_UNDECODABLE", "an HTML page"),
    "base64 in quotes": (b'"' + base64.b64encode(PNG) + b'"', "IMAGE_UNDECODABLE", "is base64 text"),
    "XML": (b"<Error><Code>AccessDenied</Code></Error>", "IMAGE_UNDECODABLE", "an XML document"),
    "JSON": (b'{"error": "not found"}', "IMAGE_UNDECODABLE", "JSON"),
    "a HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "IMAGE_UNDECODABLE", "a HEIC"),
    "a video": (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(99), "IMAGE_UNDECODABLE", "the frame that you mean"),
    "a WAV": (b"RIFF\x24\0\0\0WAVEfmt ", "IMAGE_UNDECODABLE", "no WebP"),
    "a JPEG XL": (b"\xff\x0a\xfa\x1f", "IMAGE_UNDECODABLE", "a JPEG XL"),
    "a JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "IMAGE_UNDECODABLE", "a JPEG 2000"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1", "IMAGE_UNDECODABLE", "git lfs pull"),
    "printed bytes": (repr(JPEG[:50]).encode(), "IMAGE_UNDECODABLE", "Send the bytes themselves"),
    "zeros": (bytes(1000), "IMAGE_UNDECODABLE", "only zero bytes"),
    "base64 of a PNG": (base64.b64encode(PNG), "IMAGE_UNDECODABLE", "is base64 text"),
    "base64 of a JPEG for URLs": (base64.urlsafe_b64encode(JPEG), "IMAGE_UNDECODABLE", "is base64 text"),
    "base64 of an AVIF": (base64.b64encode(encode(image(), "AVIF")), "IMAGE_UNDECODABLE", "is base64 text"),
    "a cut PNG": (PNG[: len(PNG) // 2], "IMAGE_TRUNCATED", "truncated"),
    "a cut JPEG": (JPEG[: len(JPEG) // 2], "IMAGE_TRUNCATED", "truncated"),
    "a PNG's header alone": (PNG[:20], "IMAGE_UNDECODABLE", "20 bytes"),
    "an animated PNG": (frames("PNG"), "IMAGE_ANIMATED", "frame"),
    "an animated WebP": (frames("WEBP"), "IMAGE_ANIMATED", "frame"),
    "a TIFF of two pages": (frames("TIFF"), "IMAGE_ANIMATED", "frame"),
    "a zero-sized PNG": (png_header(0, 5), "IMAGE_UNDECODABLE", "no pixels"),
    "a pixel bomb": (png_header(60_000, 60_000), "IMAGE_TOO_LARGE", "67108864"),
    "one pixel row too many": (png_header(8192, 8193), "IMAGE_TOO_LARGE", "8192 x 8193"),
    "a GIF with a huge frame": (gif_of_frame(60_000, 60_000), "IMAGE_TOO_LARGE", "Scale it down"),
    "a strip over 200:1": (encode(image(201, 1)), "IMAGE_RATIO", "201 x 1"),
    "a JPEG of many scans": (jpeg_of_scans(200), "IMAGE_TOO_COMPLEX", "the server takes 100"),
    "floats": (encode(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "IMAGE_NO_RANGE", "floats"),
    "a TIFF of five channels": (tiff_of_channels(5), "IMAGE_UNDECODABLE", "TIFF that cannot be decoded (5 channels"),
    "Apple's PNG": (PNG[:8] + b"\0\0\0\x04CgBI" + bytes(8) + PNG[8:], "IMAGE_UNDECODABLE", "CgBI"),
    "an animated AVIF": (frames("AVIF"), "IMAGE_ANIMATED", "AVIF of several frames"),
    "a data: URI of nothing": (b"data:image/png;base64,", "IMAGE_EMPTY", "no bytes"),
    "a data: URI without base64": (b"data:image/png,rawbytes", "IMAGE_UNDECODABLE", ";base64"),
    "a data: URI without a comma": (b"data:image/png;base64", "IMAGE_EMPTY", "no bytes"),
    "a data: URI without both": (b"data:image/png", "IMAGE_UNDECODABLE", ";base64"),
    "a + that became a space": (data_uri(PNG).replace(b"+", b" "), "IMAGE_UNDECODABLE", "a form may have lost a +"),
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
    assert len(str(caught.value)) < MAX_MESSAGE


LONG = 3 << 20
ENDLESS: dict[str, Callable[[], bytes]] = {
    "a label": lambda: b"data:" + b"x" * LONG + b";base64,AAAA",
    "options": lambda: b"data:" + b";" * LONG + b",AAAA",
    "spaces before a URI": lambda: b" " * LONG + b"data:;base64,AAAA",
    "a URL": lambda: b"https://example.org/" + b"a" * LONG,
    "a scheme": lambda: b"a" * LONG + b"://",
    "a body that is no base64": lambda: b"data:;base64," + b"@" * LONG,
    "escapes": lambda: b"data:;base64," + b"%" * LONG,
    "text": lambda: b"word " * (LONG // 5),
    "base64": lambda: base64.b64encode(JPEG[:3]) * (LONG // 4),
    "broken data": lambda: PNG[:60] + bytes(LONG),
    "a TIFF of many samples": lambda: tiff_of_channels(60_000) + bytes(LONG),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_message_grows_with_the_input(name: str) -> None:
    with pytest.raises(ItemError) as caught:
        patches_of(ENDLESS[name]())
    assert len(str(caught.value)) < MAX_MESSAGE
