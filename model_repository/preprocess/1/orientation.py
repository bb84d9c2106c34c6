"""How a picture lies, by its EXIF block. A block that is broken says nothing, and the picture stays as it is stored."""

from __future__ import annotations

import struct

from PIL.Image import Image, Transpose

ORIENTATION = 0x0112
UPRIGHT = 1
SHORT, LONG = 3, 4  # types of a number in EXIF
TURNS = {  # what makes a picture of each orientation upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def read_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block names in its first directory; 1 if it names none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if not order:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (num_entries,) = struct.unpack_from(order + "H", exif, start)
        for offset in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, offset)
            if tag == ORIENTATION and kind in (SHORT, LONG):
                (value,) = struct.unpack_from(order + ("H" if kind == SHORT else "I"), exif, offset + 8)
                return int(value) if value in TURNS else UPRIGHT
    except struct.error:  # it ends too early
        pass
    return UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Tell whether the width that is shown is the height that is stored."""
    return orientation >= 5


def turn_upright(image: Image, orientation: int) -> Image:
    """Turn and mirror a picture as its orientation says."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image
