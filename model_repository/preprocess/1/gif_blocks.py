"""The structure of a GIF file up to its first picture: comments and application blocks are left out, unread.

Knows blocks; knows nothing of palettes and of compressed pixels.
"""

from __future__ import annotations

from errors import ItemError

MAX_BLOCKS = 100_000  # before the first picture; XMP of a megabyte takes some 10,000
EXTENSION, GRAPHIC_CONTROL = 0x21, 0xF9
HEADER_BYTES = 13
PALETTE_FLAG = 0x80


def without_metadata(data: bytes) -> bytes:
    """Return a GIF file whose first picture follows its header, palette and graphic control at once.

    A file that ends before its first picture is returned up to there; what decodes it says so.

    Raises
    ------
    ItemError
        It has too many blocks before its first picture.
    """
    offset = HEADER_BYTES
    if len(data) > 10 and data[10] & PALETTE_FLAG:
        offset += 3 << (data[10] & 7) + 1
    kept = [data[:offset]]
    num_blocks = 0
    while data[offset : offset + 1] == bytes([EXTENSION]):
        start, is_control = offset, data[offset + 1 : offset + 2] == bytes([GRAPHIC_CONTROL])
        offset += 2
        while True:
            size_bytes = data[offset] if offset < len(data) else 0
            offset += 1 + size_bytes
            num_blocks += 1
            if num_blocks > MAX_BLOCKS:
                raise ItemError(
                    "IMAGE_TOO_COMPLEX",
                    f"image is a GIF of more than {MAX_BLOCKS} blocks before its first picture. Encode it again.",
                )
            if not size_bytes:
                break
        if is_control:
            kept.append(data[start:offset])
    return b"".join([*kept, data[offset:]])
