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
TEM, SOI, EOI, SOS, DRI, APP0, APP1, APP14, APP15, COM = 0x01, 0xD8, 0xD9, 0xDA, 0xDD, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
RESTARTS = range(0xD0, 0xD8)
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, of any coding
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
ARITHMETIC = set(range(0xC9, 0xD0)) - {0xCC}
UNSEEN = 255
MARKER = re.compile(rb"\xff[^\x00\xff]")
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class Jpeg:
    """What is read of a JPEG file."""

    data: bytes  # without what no pixel depends on
    orientation: int
    num_restarts: int  # modulo 8, in the last scan
    num_scans: int

    @property
    def continued(self) -> bytes:
        """`data` with junk after the last scan: it decodes to the same pixels if, and only if, that scan is whole.

        The junk has the restart markers that would follow, so that it is decoded whichever interval is missing.
        """
        generator = np.random.default_rng(0)
        junk = generator.integers(0, 255, (len(RESTARTS), 256), np.uint8)  # 255 would begin a marker
        junk[:, 0] |= 0x80  # a decoder goes on with zeros where there is nothing
        intervals = [
            block.tobytes() + bytes([0xFF, RESTARTS[(self.num_restarts + i) % len(RESTARTS)]])
            for i, block in enumerate(junk)
        ]
        return b"".join([self.data[:-2], *intervals, self.data[-2:]])


@dataclass
class Coefficients:
    """Which of the 64 coefficients of each component the scans have brought so far, and how much of them."""

    is_progressive: bool = False
    missing_bits: dict[int, list[int]] = field(default_factory=dict)  # by component, of each coefficient

    def begin_frame(self, marker: int, header: bytes) -> None:
        """Note the components of a frame: nothing is seen of them yet."""
        if marker in ARITHMETIC:
            raise ItemError(
                "IMAGE_UNDECODABLE", f"image is a JPEG with arithmetic coding, which viewers do not show. {ENCODED}"
            )
        self.is_progressive = marker in PROGRESSIVE
        self.missing_bits = {component: [UNSEEN] * 64 for component in header[6::3]}

    def add_scan(self, header: bytes) -> None:
        """Note what a scan brings: all of its components, or some bits of some of their coefficients."""
        components, (first, last, bits) = header[1 : 1 + 2 * header[0] : 2], header[-3:]
        if not self.is_progressive:
            first, last, bits = 0, 63, 0
        for component in components:
            missing = self.missing_bits.get(component, [])
            missing[first : last + 1] = [bits & 15] * len(missing[first : last + 1])

    def are_complete(self) -> bool:
        """Tell whether nothing is missing."""
        return bool(self.missing_bits) and not any(any(missing) for missing in self.missing_bits.values())


def read_jpeg(data: bytes) -> Jpeg:
    """Walk the segments of a JPEG file up to its end of image, which may be missing.

    Raises
    ------
    ItemError
        It does not have all scans of all components, or has more than 100 scans, or arithmetic coding.
    """
    kept = [data[:2]]
    coefficients = Coefficients()
    orientation, num_scans, num_restarts, has_restarts = UPRIGHT, 0, 0, False
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
        header = data[start + 4 : end]
        if marker == SOS:
            num_scans += 1
            coefficients.add_scan(header)
            scan = END_OF_SCAN.search(data, end)
            begin, end = end, scan.start() if scan else len(data)
            num_restarts = _count_restarts(data, begin, end) if has_restarts else 0
            kept.append(data[start:end].rstrip(b"\xff"))
        elif marker in FRAMES:
            coefficients.begin_frame(marker, header)
        elif marker == DRI:
            has_restarts = any(header)
        elif marker == APP1 and header.startswith(b"Exif\0\0") and orientation == UPRIGHT:
            orientation = read_orientation(header)
        if marker != SOS and (marker in (APP0, APP14) or not (APP0 <= marker <= APP15 or marker == COM)):
            kept.append(data[start:end])
        offset = end
    else:
        raise ItemError("IMAGE_TOO_COMPLEX", f"image is a JPEG of more than {MAX_SEGMENTS} segments. Encode it again.")
    if num_scans > MAX_SCANS:
        raise ItemError(
            "IMAGE_TOO_COMPLEX", f"image is a JPEG of {num_scans} scans; the server takes {MAX_SCANS}. Encode it again."
        )
    if not coefficients.are_complete():
        raise _cut_short(f"what should follow scan {num_scans} is missing")
    return Jpeg(b"".join([*kept, bytes([0xFF, EOI])]), orientation, num_restarts, num_scans)


def _count_restarts(data: bytes, begin: int, end: int) -> int:
    """Return how many restart markers a scan has, modulo 8: their numbers count on."""
    positions = [data.rfind(bytes([0xFF, restart]), begin, end) for restart in RESTARTS]
    return positions.index(max(positions)) + 1 if max(positions) >= 0 else 0


def _cut_short(where: str) -> ItemError:
    return ItemError("IMAGE_TRUNCATED", f"image is a JPEG that is cut short, truncated ({where}). {AGAIN}")
