"""The `image` tensor's element to the bytes of an image file: takes `data:` URIs apart, and knows what is no file.

A URI's media type is not looked at: what the bytes are, the bytes say. Knows nothing of image formats.
"""

from __future__ import annotations

import base64
import binascii
import re

from errors import ItemError, shown

URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,30}://")
STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
ESCAPES = [(b"%2b", b"+"), (b"%2f", b"/"), (b"%3d", b"="), (b"%0d", b""), (b"%0a", b""), (b"%2d", b"-"), (b"%5f", b"_")]
ENCODED = "Send the bytes of a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF file, or a data: URI of one."


def read_data_uri(data: bytes) -> bytes:
    """Return the bytes that a `data:` URI holds, and any other bytes as they are.

    Base64 may be of the standard or the URL alphabet, padded or not, broken into lines, and percent-encoded.

    Raises
    ------
    ItemError
        The URI is not base64, or broken, or holds no bytes, or the bytes are another kind of URL.
    """
    start = data[:100].lstrip()
    if start[:5].lower() != b"data:":
        if URL.match(start):
            raise ItemError("IMAGE_IS_URL", f"image is a URL ({shown(data)}); the server fetches nothing. {ENCODED}")
        return data
    header, _, body = data.partition(b",")
    if b";base64" not in header.translate(None, b" ").lower():
        raise ItemError("IMAGE_UNDECODABLE", f"image is a data: URI without ;base64 ({shown(data)}). {ENCODED}")
    decoded = _decode_base64(body)
    if not decoded:
        raise ItemError("IMAGE_EMPTY", f"image is a data: URI of no bytes ({shown(data)}). {ENCODED}")
    return decoded


def _decode_base64(text: bytes) -> bytes:
    if b"%" in text:
        for escape, character in ESCAPES:
            text = text.replace(escape, character).replace(escape.upper(), character)
    text = text.strip().translate(STANDARD_ALPHABET, b"\t\r\n").rstrip(b"=")
    if (line := text.find(b" ")) >= 0 and text.count(b" ") == text[line :: line + 1].count(b" "):
        text = text.replace(b" ", b"")  # lines of one length, which a shell has joined with spaces
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        cause = "a space, where a form may have lost a +" if b" " in text else shown(error)
        raise ItemError("IMAGE_UNDECODABLE", f"image is a data: URI with bad base64 ({cause}). {ENCODED}") from error
