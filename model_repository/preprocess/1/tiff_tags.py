"""The first directory of a TIFF file, with all tags blanked that its pixels do not depend on."""

from __future__ import annotations

import struct

from errors import ItemError

MAX_TAGS = 1000  # of a directory; a camera writes fewer than a hundred
MAX_VALUES = 20_000  # of a tag; strips are the most numerous, and each is decoded by itself
PIXELS = {  # tags that pixels depend on, orientation included
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 334, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 50674),
}
BYTE = 1  # the type of a number; one stands in the entry itself and leads nowhere


def without_metadata(data: bytes) -> bytes:
    """Return a TIFF file whose profiles, texts and EXIF lead nowhere, so that they decide nothing.

    Raises
    ------
    ItemError
        Its directory has too many tags, or a tag too many values.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    count, entry, size = (order + "Q", order + "HHQQ", 20) if is_big else (order + "H", order + "HHII", 12)
    blanked = bytearray(data)
    try:
        (start,) = struct.unpack_from(order + "Q", data, 8) if is_big else struct.unpack_from(order + "I", data, 4)
        (num_entries,) = struct.unpack_from(count, data, start)
        if num_entries > MAX_TAGS:
            raise _too_complex(f"{num_entries} tags; the server takes {MAX_TAGS}")
        first = start + struct.calcsize(count)
        for offset in range(first, min(first + size * num_entries, len(data)), size):
            tag, _, num_values, _ = struct.unpack_from(entry, data, offset)
            if tag in PIXELS and num_values > MAX_VALUES:
                raise _too_complex(f"{num_values} values of its tag {tag}; the server takes {MAX_VALUES}")
            if tag not in PIXELS:
                struct.pack_into(entry, blanked, offset, tag, BYTE, 1, 0)
    except struct.error:  # it ends too early; what reads it says so
        pass
    return bytes(blanked)


def _too_complex(what: str) -> ItemError:
    return ItemError("IMAGE_TOO_COMPLEX", f"image is a TIFF of {what}. Encode it again, in larger strips.")
