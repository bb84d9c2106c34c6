"""What a file is, by its first bytes: the formats that are decoded, and what people send instead, with its cure."""

from __future__ import annotations

import base64
import binascii

from data_uri import ENCODED, STANDARD_ALPHABET
from errors import ItemError, shown

MAX_BRANDS = 16  # of a file of the ISO base media format that are looked at
PREFIXES = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
SAVE_AS = "Save it as JPEG or PNG"
OTHERS = {  # what files begin with that are no image which can be decoded: what it is, and the cure
    b"%PDF": ("a PDF", "Render the page that you mean to a PNG"),
    b"<svg": ("an SVG", "Render it to a PNG"),
    b"<!DOCTYPE svg": ("an SVG", "Render it to a PNG"),
    b"<!DOCTYPE html": ("an HTML page", "Its address may need a login, or be wrong; send the image itself"),
    b"<html": ("an HTML page", "Its address may need a login, or be wrong; send the image itself"),
    b"<": ("an XML document", "Send the image itself"),
    b"{": ("JSON", "Send the image's bytes, or a data: URI of them"),
    b"[": ("JSON", "Send the image's bytes, or a data: URI of them"),
    b"version https://git-lfs": ("a pointer of Git LFS", "Run `git lfs pull`, and send the file that it brings"),
    b"b'": ("the printed form of Python bytes", "Send the bytes themselves"),
    b"\x93NUMPY": ("a NumPy array", SAVE_AS),
    b"\0\0\0\x0cJXL ": ("a JPEG XL", SAVE_AS),
    b"\xff\x0a": ("a JPEG XL", SAVE_AS),
    b"\0\0\0\x0cjP  ": ("a JPEG 2000", SAVE_AS),
    b"\xff\x4f\xff\x51": ("a JPEG 2000", SAVE_AS),
    b"\0\0\1\0": ("an icon (ICO)", SAVE_AS),
    b"8BPS": ("a Photoshop document", SAVE_AS),
    b"%!PS": ("a PostScript document", SAVE_AS),
    b"\x1f\x8b": ("a gzip archive", "Send the image in it"),
    b"PK\3\4": ("a ZIP archive", "Send the image in it"),
    b"\x1a\x45\xdf\xa3": ("a WebM or Matroska video", "Send the frame that you mean as JPEG or PNG"),
    b"\0" * 16: ("empty: it has only zero bytes", "It may never have been written; fetch or encode it again"),
}
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def find_format(data: bytes) -> str:
    """Return the format of an image file: JPEG, PNG, WEBP, AVIF, GIF, BMP or TIFF.

    Raises
    ------
    ItemError
        It is something else, which the message names if it is known.
    """
    for prefix, name in PREFIXES.items():
        if data.startswith(prefix):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and _brands(data) & AVIF_BRANDS:
        return "AVIF"
    what, cure = _name(data)
    raise ItemError(
        "IMAGE_UNDECODABLE",
        f"image is {what} (first bytes {shown(data, 16)}, {len(data)} bytes). {cure}. {ENCODED}",
    )


def _brands(data: bytes) -> set[bytes]:
    """Return the major and the compatible brands of a file of the ISO base media format."""
    size = min(int.from_bytes(data[:4], "big"), 8 + 4 * MAX_BRANDS)
    return {data[start : start + 4] for start in range(8, size, 4) if start != 12}


def _name(data: bytes) -> tuple[str, str]:
    if data[4:8] == b"ftyp":
        if _brands(data) & HEIC_BRANDS:
            return "a HEIC", "Save it as JPEG; phones have a setting for it"
        return "a video or photo of the ISO base media format", "Send the frame that you mean as JPEG or PNG"
    if data[:4] == b"RIFF":
        return "a RIFF file, but no WebP", "Send the frame that you mean as JPEG or PNG"
    if _is_base64(data):
        return "base64 text", "Decode it, or put data:;base64, before it"
    start = data[:1000].lstrip(b" \t\r\n\xef\xbb\xbf").lower()
    if start.startswith((b"<?xml", b"<!--")) and b"<svg" in start:
        return OTHERS[b"<svg"]
    for prefix, name_and_cure in OTHERS.items():
        if start.startswith(prefix.lower()):
            return name_and_cure
    return "of no known format", "Check that it is an image, and whole"


def _is_base64(data: bytes) -> bool:
    """Tell whether bytes are the base64 of an image whose data: prefix is missing."""
    text = data[:64].strip(b"\"' \t\r\n").translate(STANDARD_ALPHABET)
    try:
        head = base64.b64decode(text[: len(text) // 4 * 4], validate=True)
    except binascii.Error:
        return False
    return head[4:8] == b"ftyp" or head[:4] == b"RIFF" or any(head.startswith(prefix) for prefix in PREFIXES)
