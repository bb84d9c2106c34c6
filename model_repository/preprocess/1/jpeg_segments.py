"""The structure of a JPEG file: the segments that its pixels depend on, and whether its scans are whole.

What stands in application and comment segments and after the end of the picture (a video, a second picture) is left
out, so that it decides nothing. Knows markers and headers; knows nothing of entropy-coded bits: whether the last scan
is whole shows when what follows it changes the pixels (`Jpeg.continued`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from data_uri import ENCODED
from errors import AGAIN, ItemError
from orientation import UPRIGHT, read_orientation

MAX_SCANS = 100  # a progressive JPEG has about ten; each one costs a pass over all pixels
MAX_SEGMENTS = 10_000
TEM, SOI, EOI, SOS, APP0, APP1, APP14, APP15, COM = 0x01, 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
RESTARTS = range(0xD0, 0xD8)
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, of any coding
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
ARITHMETIC = set(range(0xC9, 0xD0)) - {0xCC}
UNSEEN = 255
MARKER = re.compile(rb"\xff[^\x00\xff]")
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass
class Jpeg:
    """What is read of a JPEG file."""

    segments: list[bytes] = field(default_factory=lambda: [bytes([0xFF, SOI])])  # that pixels depend on, and scans
    orientation: int = UPRIGHT
    is_progressive: bool = False
    num_scans: int = 0
    missing_bits: dict[int, list[int]] = field(default_factory=dict)  # of 64 coefficients, for each component

    @property
    def data(self) -> bytes:
        """The file without what no pixel depends on."""
        return b"".join([*self.segments, bytes([0xFF, EOI])])

    @property
    def continued(self) -> bytes:
        """`data` with junk after the last scan: it decodes to the same pixels if, and only if, that scan is whole.

        The junk has the restart markers that would follow, so that it is decoded whichever interval is missing.
        """
        last = self.segments[-1]
        positions = [last.rfind(bytes([0xFF, restart])) for restart in RESTARTS]
        next_restart = positions.index(max(positions)) + 1 if max(positions) >= 0 else 0
        generator = np.random.default_rng(0)
        junk = generator.integers(0, 255, (len(RESTARTS), 256), np.uint8)  # 255 would begin a marker
        junk[:, 0] |= 0x80  # a decoder goes on with zeros where there is nothing
        intervals = [
            block.tobytes() + bytes([0xFF, RESTARTS[(next_restart + i) % len(RESTARTS)]])
            for i, block in enumerate(junk)
        ]
        return b"".join([*self.segments, *intervals, bytes([0xFF, EOI])])


def read_jpeg(data: bytes) -> Jpeg:
    """Walk the segments of a JPEG file up to its end of image, which may be missing.

    Raises
    ------
    ItemError
        It has no whole scan of each of its components, more than 100 scans, or arithmetic coding.
    """
    jpeg = Jpeg()
    offset = 2
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, offset)  # decoders pass over bytes between segments
        if not found or found[0][1] == EOI:
            break
        marker, start = found[0][1], found.start()
        if marker in (TEM, SOI, *RESTARTS):  # no segment follows
            offset = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        end = start + 2 + length
        if end > len(data) or length < (6 if marker == SOS else 2):
            raise _cut_short(f"segment FF{marker:02X} of {length} bytes at {start} of {len(data)}")
        body = data[start + 4 : end]
        if marker == SOS:
            jpeg.num_scans += 1
            _note_scan(jpeg, body)
            scan = END_OF_SCAN.search(data, end)
            end = scan.start() if scan else len(data)
        elif marker in FRAMES:
            _note_frame(jpeg, marker, body)
        elif marker == APP1 and body.startswith(b"Exif\0\0") and jpeg.orientation == UPRIGHT:
            jpeg.orientation = read_orientation(body)
        if marker in (APP0, APP14) or not (APP0 <= marker <= APP15 or marker == COM):
            jpeg.segments.append(data[start:end].rstrip(b"\xff") if marker == SOS else data[start:end])
        offset = end
    else:
        raise ItemError("IMAGE_TOO_COMPLEX", f"image is a JPEG of more than {MAX_SEGMENTS} segments. Encode it again.")
    if jpeg.num_scans > MAX_SCANS:
        raise ItemError(
            "IMAGE_TOO_COMPLEX",
            f"image is a JPEG of {jpeg.num_scans} scans; the server takes {MAX_SCANS}. Encode it again.",
        )
    if any(any(missing) for missing in jpeg.missing_bits.values()) or not jpeg.num_scans:
        raise _cut_short(f"scans are missing after the first {jpeg.num_scans}")
    return jpeg


def _note_frame(jpeg: Jpeg, marker: int, body: bytes) -> None:
    """Note the components of a frame: nothing is seen of them yet."""
    if marker in ARITHMETIC:
        raise ItemError(
            "IMAGE_UNDECODABLE", f"image is a JPEG with arithmetic coding, which viewers do not show. {ENCODED}"
        )
    jpeg.is_progressive = marker in PROGRESSIVE
    jpeg.missing_bits = {component: [UNSEEN] * 64 for component in body[6::3]}


def _note_scan(jpeg: Jpeg, body: bytes) -> None:
    """Note which coefficients of which components a scan brings, and up to which of their bits."""
    components, (first, last, bits) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
    if not jpeg.is_progressive:
        first, last, bits = 0, 63, 0
    for component in components:
        missing = jpeg.missing_bits.get(component, [])
        missing[first : last + 1] = [bits & 15] * len(missing[first : last + 1])


def _cut_short(where: str) -> ItemError:
    return ItemError("IMAGE_TRUNCATED", f"image is a JPEG that is cut short, truncated ({where}). {AGAIN}")
