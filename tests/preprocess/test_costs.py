"""What a pack may cost is counted before it is paid: no image is decoded and no text tokenised that is refused."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import images
from decode import read_picture
from errors import ItemError
from preprocessing import Abandoned, Bounds, PackError, Preprocessor
from tests.samples import encode, image

EOI = b"\xff\xd9"
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"  # one component, AC coefficients 1 ... 63


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that grows by the size of every image that is decoded."""
    sizes: list[tuple[int, int]] = []
    decode = images.Picture.decode

    def noted(picture: images.Picture) -> Image.Image:
        sizes.append(picture.size)
        return decode(picture)

    monkeypatch.setattr(images.Picture, "decode", noted)
    return sizes


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_pixels_of_a_pack_are_bounded(
    preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    large = encode(Image.new("L", (2048, 2048)), image_format)
    sizes = decoded(monkeypatch)
    with pytest.raises(
        PackError, match=r"has 138412032 pixels to decode; the server takes 134217728.*in parts"
    ) as caught:
        preprocessor(image=[large] * 33, max_pixels=4096)
    assert caught.value.code == "PACK_TOO_LARGE"
    assert not sizes
    assert preprocessor(image=[large] * 2, max_pixels=4096).lengths.shape == (1, 2)
    assert len(sizes) == 2


def test_scans_count_as_passes(preprocessor: Preprocessor) -> None:
    data = encode(Image.new("RGB", (2000, 1500)), "JPEG", progressive=True)
    assert read_picture(data, exif_orientation=True).work_pixels == 2000 * 1500
    heavy = data[:-2] + SCAN * 80 + EOI
    assert read_picture(heavy, exif_orientation=True).work_pixels >= 8 * 2000 * 1500
    with pytest.raises(PackError, match="pixels to decode"):
        preprocessor(image=[heavy] * 6, max_pixels=4096)
    large = encode(Image.new("L", (5000, 4000)), "JPEG", progressive=True)
    with pytest.raises(PackError, match="count as") as caught:
        preprocessor(image=[large[:-2] + SCAN * 80 + EOI])
    assert caught.value.codes == {"IMAGE_TOO_COMPLEX"}


def test_bytes_to_tokenise_are_bounded(preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenised(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(preprocessor._prompt, "item", tokenised)
    texts = [b"word " * 50_000] * 5
    for truncate in (False, True):
        with pytest.raises(PackError, match="bytes of text to tokenise; the server takes 1048576"):
            preprocessor(text=texts, truncate=truncate)
    with pytest.raises(PackError, match="bytes of text to tokenise"):
        preprocessor(text=[b"a"] * 64, instruction=[b"word " * 5000])  # it is tokenised for each item


def test_what_honest_packs_cost_is_taken() -> None:
    bounds = Bounds()
    assert bounds.max_pack_pixels >= bounds.max_image_pixels
    assert bounds.max_pack_text_bytes >= 2 * bounds.max_text_bytes  # a text and its instruction
    assert bounds.max_pack_text_bytes >= 32 * bounds.max_pack_tokens


def test_a_pack_that_nobody_waits_for_is_dropped_between_its_images(
    preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = decoded(monkeypatch)
    with pytest.raises(Abandoned):
        preprocessor(image=[encode(image())] * 8, is_wanted=lambda: len(sizes) < 3)
    assert len(sizes) == 3


def gif_with(extension: bytes) -> bytes:
    data = encode(image(60, 40, "P"), "GIF")
    start = data.index(b"\x2c", 13 + (3 << (data[10] & 7) + 1))
    return data[:start] + extension + data[start:]


@pytest.mark.parametrize(
    "extension", [b"\x21\xfe\0" * 1000, b"\x21\xfe" + b"\x01a" * 5000 + b"\0", b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"]
)
def test_metadata_of_a_gif_decide_nothing(extension: bytes) -> None:
    ours = np.asarray(read_picture(gif_with(extension), exif_orientation=True).decode())
    np.testing.assert_array_equal(ours, np.asarray(read_picture(gif_with(b""), exif_orientation=True).decode()))


@pytest.mark.parametrize("extension", [b"\x21\xfe\0", b"\x01a"], ids=["comments", "blocks of one"])
def test_a_gif_of_many_blocks_is_refused_without_memory(extension: bytes) -> None:
    data = gif_with((b"" if extension[0] == 0x21 else b"\x21\xfe") + extension * 2_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ItemError, match="GIF of more than 100000 blocks") as caught:
            read_picture(data, exif_orientation=True)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code == "IMAGE_TOO_COMPLEX"


def tiff_claiming(tag: int, num_values: int) -> bytes:
    data = bytearray(encode(image(), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    for offset in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, offset)[0] == tag:
            struct.pack_into("<I", data, offset + 4, num_values)
    return bytes(data)


@pytest.mark.parametrize("tag", [258, 273, 279])
def test_a_tiff_of_many_values_is_refused(tag: int) -> None:
    with pytest.raises(ItemError, match=f"115000 values of its tag {tag}; the server takes 20000") as caught:
        read_picture(tiff_claiming(tag, 115_000) + bytes(1 << 20), exif_orientation=True)
    assert caught.value.code == "IMAGE_TOO_COMPLEX"


def test_a_tiff_of_many_tags_is_refused() -> None:
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + struct.pack("<HHII", 258, 3, 1, 8) * 60_000
    with pytest.raises(ItemError, match="60000 tags; the server takes 1000"):
        read_picture(data, exif_orientation=True)
