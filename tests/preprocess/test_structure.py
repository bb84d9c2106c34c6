"""Whole files, cut files and files with more than a picture: what decides is the picture, and that it is all there."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from decode import read_picture
from errors import ItemError
from tests.samples import encode, image

EOI = b"\xff\xd9"
JPEGS = {
    "baseline": {},
    "no subsampling": {"subsampling": 0, "quality": 95},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive, quality 100": {"progressive": True, "quality": 100},
    "restart markers": {"restart_marker_blocks": 3},
    "a restart marker a row": {"restart_marker_rows": 1},
    "progressive, restart markers": {"progressive": True, "restart_marker_rows": 1},
}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(read_picture(data, exif_orientation=True).decode())


def code_of(data: bytes) -> str:
    with pytest.raises(ItemError) as caught:
        pixels(data)
    return caught.value.code


# --- cut short ---


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", JPEGS)
def test_a_cut_jpeg_is_refused_wherever_it_was_cut(name: str, mode: str) -> None:
    """With and without an end of image after the cut; whatever is accepted has every pixel of the whole."""
    data = encode(image(97, 61, mode), "JPEG", **JPEGS[name])
    whole = pixels(data)
    np.testing.assert_array_equal(whole, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    cuts = {*range(len(data) - 60, len(data)), *range(2, len(data), max(1, len(data) // 60))}
    num_accepted = 0
    for cut in cuts:
        for end in (b"", EOI):
            try:
                ours = pixels(data[:cut] + end)
            except ItemError as error:
                assert error.code == "IMAGE_TRUNCATED", (cut, str(error))  # noqa: PT017
            else:
                np.testing.assert_array_equal(ours, whole)
                num_accepted += 1
    assert num_accepted < len(cuts)


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_its_end_alone_is_whole(name: str) -> None:
    data = encode(image(97, 61), "JPEG", **JPEGS[name])
    np.testing.assert_array_equal(pixels(data.removesuffix(EOI)), pixels(data))
    np.testing.assert_array_equal(pixels(data[:-1]), pixels(data))


def test_a_progressive_jpeg_that_lacks_whole_scans_is_refused() -> None:
    data = encode(image(97, 61), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    for cut in (last, tables):
        assert code_of(data[:cut] + EOI) == "IMAGE_TRUNCATED"


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_other_cut_files_are_refused(image_format: str) -> None:
    data = encode(image(60, 40), image_format)
    whole = pixels(data)
    num_accepted = 0
    for cut in [*range(60, len(data), max(1, len(data) // 40)), len(data) - 1]:
        try:
            ours = pixels(data[:cut])
        except ItemError as error:
            assert error.code in ("IMAGE_TRUNCATED", "IMAGE_UNDECODABLE"), cut  # noqa: PT017
        else:
            np.testing.assert_array_equal(ours, whole)
            num_accepted += 1
    assert num_accepted <= 1  # what follows the pixels may be missing


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(rows: bytes, width: int, height: int, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_a_png_whose_stream_ends_early_is_refused() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image(50, 40)))
    for end in (len(rows) // 2, len(rows) - 1):
        assert code_of(png_of(rows[:end], 50, 40)) == "IMAGE_TRUNCATED"
    last_row_missing = png_of(rows[: 39 * 151], 50, 40)
    assert code_of(last_row_missing) == "IMAGE_TRUNCATED"


def test_a_black_last_row_is_no_missing_one() -> None:
    picture = np.asarray(image(50, 40)).copy()
    picture[-1] = 0
    data = encode(Image.fromarray(picture))
    np.testing.assert_array_equal(pixels(data), picture)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_a_tiff_whose_data_end_early_is_refused(compression: str | None, orientation: int) -> None:
    """It promises twice the rows that it has."""
    picture = image(50, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = bytearray(encode(picture, "TIFF", compression=compression, exif=exif))
    np.testing.assert_array_equal(pixels(bytes(data)).shape[:2], (40, 50) if orientation < 5 else (50, 40))
    (start,) = struct.unpack_from("<I", data, 4)
    for offset in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, offset)[0] in (257, 278):  # its rows, and those of a strip
            struct.pack_into("<HII", data, offset + 2, 4, 1, 80)
    assert code_of(bytes(data)) in ("IMAGE_TRUNCATED", "IMAGE_UNDECODABLE")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16", "P", "LA"])
def test_a_black_picture_is_whole(mode: str) -> None:
    assert pixels(encode(Image.new(mode, (50, 40)))).shape == (40, 50, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (50, 41)], ids=str)
def test_interlaced_pngs(size: tuple[int, int]) -> None:
    picture = np.asarray(image(*size))
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in picture[y::dy, x::dx] if row.size)
    np.testing.assert_array_equal(pixels(png_of(rows, *size, interlace=1)), picture)
    assert code_of(png_of(rows[:-1], *size, interlace=1)) == "IMAGE_TRUNCATED"


# --- more than a picture ---


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


JUNK = np.random.default_rng(0).integers(0, 256, 60_000, np.uint8).tobytes()
SCANS = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * 2000
JPEG = encode(image(97, 61), "JPEG")
BESIDE = {
    "a video after the end": JPEG + b"\0\0\0\x18ftypmp42" + JUNK * 100 + SCANS,
    "another picture after the end": JPEG + encode(image(97, 61, seed=1), "JPEG"),
    "zeros after the end": JPEG + bytes(1000),
    "scans in an application segment": JPEG[:2] + segment(0xE7, SCANS) + JPEG[2:],
    "random application segments": JPEG[:2] + b"".join(segment(m, JUNK) for m in range(0xE1, 0xEE)) + JPEG[2:],
    "a broken profile": JPEG[:2] + segment(0xE2, b"ICC_PROFILE\0\x01\x02" + JUNK) + JPEG[2:],
    "an index of other pictures": JPEG[:2] + segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + JUNK) + JPEG[2:],
    "a long comment": JPEG[:2] + segment(0xFE, JUNK) * 30 + JPEG[2:],
    "bytes between the segments": JPEG[:2] + b"\0garbage\xff\0" + JPEG[2:],
    "fill bytes before markers": JPEG[:2] + b"\xff" * 9 + JPEG[2:-2] + b"\xff" * 9 + EOI,
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_a_jpegs_picture_decides_nothing(name: str) -> None:
    np.testing.assert_array_equal(pixels(BESIDE[name]), pixels(JPEG))


def test_a_photo_of_several_pictures_is_its_first() -> None:
    first, second = image(97, 61), image(97, 61, seed=1)
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = encode(image(200, 200), "JPEG", progressive=True)
    assert code_of(data[:-2] + SCANS[:10] * 200 + EOI) == "IMAGE_TOO_COMPLEX"
    assert code_of(b"\xff\xd8" + segment(0xFE, b"") * 20_000 + data[2:]) == "IMAGE_TOO_COMPLEX"


def test_metadata_of_a_png_decide_nothing() -> None:
    plain = encode(image(60, 40))
    bomb = zlib.compress(bytes(50 << 20))
    start = 8 + 25  # after the header
    chunks = [
        chunk(b"zTXt", b"Comment\0\0" + bomb),
        chunk(b"iTXt", b"Comment\0\x01\0\0\0" + bomb),
        chunk(b"iCCP", b"profile\0\0" + bomb),
        chunk(b"iCCP", b"garbage"),
        chunk(b"tEXt", b"Comment\0" + b"x" * (5 << 20)),
        chunk(b"gAMA", b"1"),
        chunk(b"tIME", b""),
        chunk(b"zTXt", b"Comment\0\0" + b"no stream"),
        chunk(b"eXIf", JUNK),
        chunk(b"vLem", JUNK),
        chunk(b"tEXt", b"x")[:-1] + b"\0",  # a wrong checksum
    ]
    for extra in [*chunks, b"".join(chunks)]:
        np.testing.assert_array_equal(pixels(plain[:start] + extra + plain[start:]), pixels(plain))
    np.testing.assert_array_equal(pixels(plain + JUNK), pixels(plain))


def test_a_large_text_that_pillow_wrote() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * (2 << 20), zip=True)
    data = encode(image(60, 40), pnginfo=info)
    assert len(data) < 30_000
    np.testing.assert_array_equal(pixels(data), np.asarray(image(60, 40)))


def test_metadata_of_a_webp_decide_nothing() -> None:
    plain = encode(image(60, 40), "WEBP", lossless=True)
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    full = encode(image(60, 40), "WEBP", lossless=True, exif=exif, icc_profile=JUNK[:999], xmp=JUNK[:999])
    assert full[12:16] == b"VP8X"
    np.testing.assert_array_equal(pixels(full), pixels(plain))
    broken = full.replace(JUNK[:999], bytes(999))
    np.testing.assert_array_equal(pixels(broken), pixels(plain))
    np.testing.assert_array_equal(pixels(full + JUNK), pixels(plain))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_metadata_of_a_tiff_decide_nothing(compression: str | None) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x010E], info[0x0131], info[0x8773], info[0x010D] = "a description", "a program", JUNK[:999], "a document"
    data = bytearray(encode(image(60, 40), "TIFF", compression=compression, tiffinfo=info))
    whole = pixels(bytes(data))
    (start,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, start)
    num_broken = 0
    for offset in range(start + 2, start + 2 + 12 * num_tags, 12):
        if struct.unpack_from("<H", data, offset)[0] in (0x010E, 0x0131, 0x8773, 0x010D):
            struct.pack_into("<I", data, offset + 8, len(data) - 3)
            num_broken += 1
    assert num_broken == 4
    np.testing.assert_array_equal(pixels(bytes(data)), whole)


def test_a_png_with_a_wrong_checksum_says_which() -> None:
    data = bytearray(encode(image(60, 40)))
    data[-20] ^= 1
    with pytest.raises(ItemError, match="PNG whose chunk IDAT has a wrong checksum"):
        pixels(bytes(data))
