"""An encoded image to 8-bit RGB, as a viewer shows it: upright, transparency over white, deep samples scaled.

The one place that knows Pillow's modes. Images come from strangers: everything that can be refused is refused from
headers, before a pixel is decoded. Knows nothing of sizes that a model wants.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

import gif_blocks
import tiff_tags
from errors import AGAIN, ItemError, shown
from formats import find_format
from jpeg_segments import Jpeg, read_jpeg
from orientation import ORIENTATION, UPRIGHT, swaps_sides, turn_upright
from png_chunks import Png, read_png
from webp_chunks import read_webp

READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
NAMES = {"WEBP": "WebP"}  # as people write them
WHITE = (255, 255, 255)
STRIP_ROWS = 256  # compared at a time
AVIF_EXIF_ITEM = re.compile(rb"(infe[\2\3].{3}.{4}(?:..)?)Exif", re.DOTALL)
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_CHANNELS, TIFF_SAMPLE_FORMAT = 258, 262, 277, 339
WHITE_IS_ZERO = 0
UNSIGNED = 1
SCANS_OF_A_PASS = 10  # as encoders of progressive JPEGs make
MAX_META_BYTES = 1 << 20  # of an AVIF file, where its items are listed


@dataclass(frozen=True)
class Picture:
    """An image whose header was read and accepted, not yet decoded."""

    image: ImageFile.ImageFile
    kind: str  # a key of READERS
    orientation: int
    structure: Jpeg | Png | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px, as shown."""
        width, height = self.image.size
        return (height, width) if swaps_sides(self.orientation) else (width, height)

    @property
    def work_pixels(self) -> int:
        """What decoding it takes, in pixels of an image of one pass: ten scans of a progressive JPEG are worth one."""
        scans = self.structure.num_scans if isinstance(self.structure, Jpeg) else 1
        return math.prod(self.image.size) * max(SCANS_OF_A_PASS, scans) // SCANS_OF_A_PASS

    def decode(self) -> Image.Image:
        """Return all of its pixels as 8-bit RGB, as a viewer shows them.

        Raises
        ------
        ItemError
            The image is cut short, its data are broken, or its samples have no defined range.
        """
        with _failures_named(self.kind):
            covered = self.image.tile[0].extents if self.kind == "GIF" else None
            self.image.load()
            self._check_whole()
            if isinstance(self.structure, Png):
                _scale_transparent_colour(self.image, self.structure)
            rgb = to_rgb(self.image)
            rgb = _on_canvas(rgb, covered) if covered else rgb
            return turn_upright(rgb, self.orientation)

    def close(self) -> None:
        """Give the pixels back, those that `decode` returned included: a pack's would fill the memory together."""
        self.image.close()

    def _check_whole(self) -> None:
        """Refuse a picture whose data end early where Pillow does not say so, by decoding it again.

        libjpeg fills in what a JPEG lacks: other pixels come if junk follows. Of a PNG what is not decoded keeps the
        colour that it had before: that is black, and white the second time.
        """
        if isinstance(self.structure, Jpeg):
            again = READERS[self.kind](io.BytesIO(self.structure.continued))
        elif isinstance(self.structure, Png) and (self.structure.is_interlaced or _ends_black(self.image)):
            again = READERS[self.kind](io.BytesIO(self.structure.data))
            white = 65535 if again.mode == "I;16" else (255,) * len(again.getbands())
            again.im = Image.new(again.mode, again.size, white).im
        else:
            return
        with again:
            again.load()
            for top in range(0, self.image.height, STRIP_ROWS):
                strip = (0, top, self.image.width, min(top + STRIP_ROWS, self.image.height))
                if not _are_equal(self.image.crop(strip), again.crop(strip)):
                    raise _undecodable(self.kind, f"truncated below row {top}")


def read_picture(data: bytes, *, exif_orientation: bool) -> Picture:
    """Read the header of an encoded image.

    Parameters
    ----------
    data
        The bytes of a JPEG, PNG, WebP, AVIF, GIF (its first frame), BMP or TIFF file.
    exif_orientation
        Whether the picture is turned as its EXIF block says. TIFF always is.

    Raises
    ------
    ItemError
        The bytes are no image of a known format, are cut short or broken, or hold several frames.
    """
    kind = find_format(data)
    structure: Jpeg | Png | None = None
    orientation, num_frames = UPRIGHT, 1
    if kind == "JPEG":
        structure = read_jpeg(data)
        data, orientation = structure.data, structure.orientation
    elif kind == "PNG":
        structure = read_png(data)
        data, orientation, num_frames = structure.data, structure.orientation, structure.num_frames
    elif kind == "WEBP":
        webp = read_webp(data)
        data, orientation, num_frames = webp.data, webp.orientation, webp.num_frames
    elif kind == "AVIF":
        data = _without_exif(data)
    elif kind == "GIF":
        data = gif_blocks.without_metadata(data)
    elif kind == "TIFF":
        data = tiff_tags.without_metadata(data)
    with _failures_named(kind):
        try:
            image = READERS[kind](io.BytesIO(data))
        except SyntaxError as error:
            raise _undecodable(kind, _cause(kind, data, error)) from error
        if kind in ("AVIF", "TIFF"):
            num_frames = 1 + bool(getattr(image, "is_animated", False))
        if kind == "AVIF":
            orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    if num_frames > 1:
        raise ItemError(
            "IMAGE_ANIMATED",
            f"image is a {NAMES.get(kind, kind)} of several frames; one frame is an item. Send the frame you mean.",
        )
    return Picture(image, kind, orientation if exif_orientation else UPRIGHT, structure)


@contextmanager
def _failures_named(kind: str) -> Iterator[None]:
    """Raise whatever Pillow raises on hostile bytes, which may be anything, as an ItemError that names the format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of metadata, too
            yield
    except ItemError:
        raise
    except Image.DecompressionBombError as error:  # a frame is larger than the picture
        raise ItemError("IMAGE_TOO_LARGE", f"image is a {kind}: {shown(error)} Scale it down.") from error
    except Exception as error:
        raise _undecodable(kind, shown(error)) from error


def _undecodable(kind: str, cause: str) -> ItemError:
    name = NAMES.get(kind, kind)
    if "truncated" in cause.lower():
        return ItemError("IMAGE_TRUNCATED", f"image is a {name} that is cut short ({cause}). {AGAIN}")
    return ItemError("IMAGE_UNDECODABLE", f"image is a {name} that cannot be decoded ({cause}). {AGAIN}")


def _cause(kind: str, data: bytes, error: Exception) -> str:
    """Say why Pillow cannot read a header."""
    if "not identified" in str(error):
        return "it has no pixels"
    if kind == "TIFF":
        with suppress(Exception):  # as hostile as the rest
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
            if tags.next >= len(data):
                return f"truncated before its directory, which is at {tags.next} of {len(data)} bytes"
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            return f"{tags[TIFF_CHANNELS]} channels of {shown(tags[TIFF_BITS], 20)} bits: {shown(error)}"
    return shown(error)


def _without_exif(avif: bytes) -> bytes:
    """Hide the EXIF block of an AVIF file, whose orientation counts for nothing and which Pillow refuses if broken."""
    return AVIF_EXIF_ITEM.sub(rb"\1none", avif[:MAX_META_BYTES]) + avif[MAX_META_BYTES:]


def _are_equal(one: Image.Image, other: Image.Image) -> bool:
    """Compare pixels; those of 8 bits where they lie, without packing them into bytes first."""
    if one.mode in ("L", "RGB", "CMYK"):
        return ImageChops.difference(one, other).getbbox(alpha_only=False) is None
    return one.tobytes() == other.tobytes()


def _ends_black(image: Image.Image) -> bool:
    """Tell whether the last row is all zero, as it is where it was not decoded."""
    return not np.asarray(image.crop((0, image.height - 1, *image.size))).any()


def _scale_transparent_colour(image: Image.Image, png: Png) -> None:
    """Give the transparent colour of a PNG the depth that its pixels have in Pillow: there it is as stored."""
    colour = image.info.get("transparency")
    if isinstance(colour, int) and png.colour_type == 0 and png.depth <= 8:
        brightest = 2**png.depth - 1
        image.info["transparency"] = (colour & brightest) * 255 // brightest
    elif isinstance(colour, tuple):
        image.info["transparency"] = tuple(sample >> (png.depth - 8) & 255 for sample in colour)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image as 8-bit RGB: over white where it is transparent, its samples scaled to 8 bits.

    RGBA goes over white and opaque images of 8 bits are converted as the official embedder does both.

    Raises
    ------
    ItemError
        Its samples have no defined range: they are floats or signed.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_samples(image)
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    if image.mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, WHITE)
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _on_canvas(rgb: Image.Image, covered: tuple[int, int, int, int]) -> Image.Image:
    """Return a GIF whose frame covers a part of its canvas, with the rest white."""
    canvas = Image.new("RGB", rgb.size, WHITE)
    canvas.paste(rgb.crop(covered), covered)
    return canvas


def _from_deep_samples(image: Image.Image) -> Image.Image:
    """Scale grey samples of more than 8 bits by their depth, which is 16 where no TIFF says otherwise."""
    tags = getattr(image, "tag_v2", {})
    depth = tags.get(TIFF_BITS, (16,))[0]
    if image.mode in ("F", "I") and (not tags or tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))[0] != UNSIGNED):
        raise ItemError(
            "IMAGE_NO_RANGE",
            f"image has samples of {'floats' if image.mode == 'F' else 'signed integers'}, and nothing says which is "
            "black and which is white. Scale them to 8 bits, or to unsigned integers of 16.",
        )
    samples = np.asarray(image).astype(np.uint32)
    grey = (samples >> (depth - 8)).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
