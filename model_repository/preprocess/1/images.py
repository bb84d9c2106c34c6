"""Encoded images to uint8 patches, exactly as transformers' Pillow processor makes them.

Knows image formats, the resizing rule and the patch order; knows nothing of text, packs or Triton. Images come from
strangers: everything that can be refused is refused from the header, before a pixel is decoded.

Letters: H, W pixels of the resized image; V visual tokens, H/32 x W/32.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

PATCH_PX = 16
MERGE = 2  # a visual token is MERGE x MERGE patches
TOKEN_PX = PATCH_PX * MERGE
TEMPORAL = 2  # a still image fills both frames of a patch
PATCH_SIZE = MERGE * MERGE * 3 * TEMPORAL * PATCH_PX * PATCH_PX  # 6144 bytes of one visual token
MAX_RATIO = 200

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
STILL_FORMATS = ("PNG", "WEBP", "TIFF")  # several frames of these are refused; of GIF and MPO the first one is taken
DATA_URI = re.compile(rb"\s*data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
SYNONYMS = {"image/jpg": "image/jpeg", "image/x-ms-bmp": "image/bmp"}
UNLABELLED = ("", "application/octet-stream")
START_OF_SCAN = b"\xff\xda"
MAX_SCANS = 100  # a progressive JPEG has about ten; each one costs a pass over all pixels
URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
ENCODED = "Send the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file, or a data: URI of one."


class ItemError(ValueError):
    """One item of a pack is invalid; `code` says how in one word, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class OpenImage:
    """An image whose header was read and accepted, not yet decoded."""

    image: Image.Image
    height: int  # px after resizing, a multiple of 32
    width: int  # px after resizing, a multiple of 32

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        return self.height // TOKEN_PX, self.width // TOKEN_PX

    @property
    def num_tokens(self) -> int:
        """V: visual tokens."""
        return math.prod(self.grid)


def open_image(
    data: bytes, *, min_pixels: int, max_pixels: int, max_image_bytes: int, max_image_pixels: int
) -> OpenImage:
    """Read the header of an encoded image (or a `data:` URI of one) and settle its resized size.

    Raises
    ------
    ItemError
        The bytes are no image of a known format, too many, too many pixels, animated, wrongly labelled, a URL, or the
        sides' ratio is above 200.
    """
    if len(data) > max_image_bytes * 4 / 3 + 100:  # what a data: URI of the largest image takes
        raise _too_many_bytes(len(data), max_image_bytes)
    data, label = _read_data_uri(data)
    if len(data) > max_image_bytes:
        raise _too_many_bytes(len(data), max_image_bytes)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        is_animated = image.format in STILL_FORMATS and getattr(image, "is_animated", False)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ItemError("IMAGE_TOO_LARGE", f"image: {error}; the server takes {max_image_pixels} pixels.") from error
    except Exception as error:  # the parsers raise anything on hostile bytes
        raise ItemError(
            "IMAGE_UNDECODABLE",
            f"image is not readable or has no pixels (first bytes {bytes(data[:8])!r}, {len(data)} bytes). {ENCODED}",
        ) from error
    width, height = image.size
    if width * height > max_image_pixels:
        raise ItemError(
            "IMAGE_TOO_LARGE",
            f"image is {width} x {height} = {width * height} pixels; the server takes {max_image_pixels}. "
            "Scale it down.",
        )
    if image.format in ("JPEG", "MPO") and (num_scans := data.count(START_OF_SCAN)) > MAX_SCANS:
        raise ItemError(
            "IMAGE_TOO_COMPLEX", f"image is a JPEG of {num_scans} scans; the server takes {MAX_SCANS}. Encode it again."
        )
    if is_animated:
        raise ItemError(
            "IMAGE_ANIMATED",
            f"image is a {image.format} of several frames; one frame is an item. Send the frame you mean.",
        )
    media_type = "image/jpeg" if image.format == "MPO" else Image.MIME[str(image.format)]
    if label and label != media_type:
        raise ItemError(
            "IMAGE_MISLABELLED",
            f"image is labelled {label!r} but holds {media_type!r}. Label the data: URI as what it is.",
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ItemError(
            "IMAGE_RATIO", f"image is {width} x {height} pixels; the sides' ratio may be {MAX_RATIO} at most. Crop it."
        )
    return OpenImage(image, *smart_resize(height, width, min_pixels, max_pixels))


def _too_many_bytes(size_bytes: int, max_image_bytes: int) -> ItemError:
    return ItemError(
        "IMAGE_TOO_LARGE", f"image has {size_bytes} bytes; the server takes {max_image_bytes}. Compress it."
    )


def _read_data_uri(data: bytes) -> tuple[bytes, str]:
    """Return the bytes and the media type that a `data:` URI declares; plain bytes have none."""
    if header := DATA_URI.match(data):
        media_type, options = header[1].decode("latin-1").lower(), header[2].lower()
        if not options.endswith(b";base64"):
            raise ItemError("IMAGE_UNDECODABLE", f"image is a data: URI without ;base64 ({data[:40]!r}). {ENCODED}")
        try:
            decoded = base64.b64decode(b"".join(data[header.end() :].split()), validate=True)  # MIME breaks lines
        except binascii.Error as error:
            raise ItemError(
                "IMAGE_UNDECODABLE", f"image is a data: URI with bad base64 ({error}). {ENCODED}"
            ) from error
        if not decoded:
            raise ItemError("IMAGE_EMPTY", f"image is a data: URI of no bytes ({data[:40]!r}). {ENCODED}")
        return decoded, "" if media_type in UNLABELLED else SYNONYMS.get(media_type, media_type)
    if URL.match(data):
        raise ItemError("IMAGE_IS_URL", f"image is a URL ({data[:60]!r}); the server fetches nothing. {ENCODED}")
    return data, ""


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the size, in multiples of 32 px, that keeps the ratio and stays inside the pixel bounds.

    Source: `smart_resize` of transformers, with Python's half-even `round`. That of qwen-vl-utils, which the official
    script calls, differs where a side has 16 px or less: it rounds it up to 32 before it looks at the bounds.
    """
    new_height = round(height / TOKEN_PX) * TOKEN_PX
    new_width = round(width / TOKEN_PX) * TOKEN_PX
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(TOKEN_PX, math.floor(height / shrink / TOKEN_PX) * TOKEN_PX)
        new_width = max(TOKEN_PX, math.floor(width / shrink / TOKEN_PX) * TOKEN_PX)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / TOKEN_PX) * TOKEN_PX
        new_width = math.ceil(width * grow / TOKEN_PX) * TOKEN_PX
    return new_height, new_width


def write_patches(opened: OpenImage, out: npt.NDArray[np.uint8]) -> None:
    """Decode, resize and cut an image into `out`, uint8 (V, 6144): rows in merge-block order.

    Raises
    ------
    ItemError
        The image is truncated or its data are broken.
    """
    try:
        opened.image.load()
        rgb = to_rgb(opened.image).resize((opened.width, opened.height), Image.Resampling.BICUBIC)
    except Exception as error:  # the decoders raise anything on hostile bytes
        code = "IMAGE_TRUNCATED" if "truncated" in str(error) else "IMAGE_UNDECODABLE"
        raise ItemError(
            code, f"image is a {opened.image.format} whose data cannot be decoded ({error}). {ENCODED}"
        ) from error
    finally:
        opened.image.close()  # a pack's decoded images would fill the memory together
    rows, columns = opened.grid
    pixels = np.asarray(rgb).reshape(rows, MERGE, PATCH_PX, columns, MERGE, PATCH_PX, 3)
    patches = pixels.transpose(0, 3, 1, 4, 6, 2, 5)  # (rows, columns, MERGE, MERGE, 3, PATCH_PX, PATCH_PX)
    frames = out.reshape(rows, columns, MERGE, MERGE, 3, TEMPORAL, PATCH_PX, PATCH_PX)
    frames[...] = patches[:, :, :, :, :, None]


def to_rgb(image: Image.Image) -> Image.Image:
    """Paste RGBA over white and convert every other mode, as the official embedder does. No EXIF rotation."""
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # Pillow advises RGBA for transparent palettes; the reference drops it
        return image.convert("RGB")
