"""Encoded images to uint8 patches, exactly as transformers' Pillow processor makes them of the picture that is shown.

Knows bounds, the resizing rule and the patch order; knows nothing of formats, text, packs or Triton.

Letters: H, W pixels of the resized image; V visual tokens, H/32 x W/32.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL.Image import Resampling

from data_uri import read_data_uri
from decode import Picture, read_picture
from errors import ItemError as ItemError

PATCH_PX = 16
MERGE = 2  # a visual token is MERGE x MERGE patches
TOKEN_PX = PATCH_PX * MERGE
TEMPORAL = 2  # a still image fills both frames of a patch
PATCH_SIZE = MERGE * MERGE * 3 * TEMPORAL * PATCH_PX * PATCH_PX  # 6144 bytes of one visual token
PATCH_ROW = np.dtype((np.void, PATCH_PX))  # the samples of a patch's row lie side by side and are moved as one
MAX_RATIO = 200


@dataclass(frozen=True)
class OpenImage:
    """An image whose header was read and accepted, not yet decoded."""

    picture: Picture
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
    data: bytes,
    *,
    min_pixels: int,
    max_pixels: int,
    max_image_bytes: int,
    max_image_pixels: int,
    max_work_pixels: int | None = None,
    exif_orientation: bool = True,
) -> OpenImage:
    """Read the header of an encoded image (or a `data:` URI of one) and settle its resized size.

    Raises
    ------
    ItemError
        The bytes are no image of a known format, cut short, too many, too many pixels, animated, a URL, or the sides'
        ratio is above 200.
    """
    if len(data) > max_image_bytes * 4 / 3 + 100:  # what a data: URI of the largest image takes
        raise _too_many_bytes(len(data), max_image_bytes)
    data = read_data_uri(data)
    if len(data) > max_image_bytes:
        raise _too_many_bytes(len(data), max_image_bytes)
    picture = read_picture(data, exif_orientation=exif_orientation)
    width, height = picture.size
    if width * height > max_image_pixels:
        raise ItemError(
            "IMAGE_TOO_LARGE",
            f"image is {width} x {height} = {width * height} pixels; the server takes {max_image_pixels}. "
            "Scale it down.",
        )
    if max_work_pixels is not None and picture.work_pixels > max_work_pixels:
        raise ItemError(
            "IMAGE_TOO_COMPLEX",
            f"image is {width} x {height} pixels in so many passes that they count as {picture.work_pixels}; "
            f"the server takes {max_work_pixels} of a pack. Encode it again, in fewer scans.",
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ItemError(
            "IMAGE_RATIO", f"image is {width} x {height} pixels; the sides' ratio may be {MAX_RATIO} at most. Crop it."
        )
    return OpenImage(picture, *smart_resize(height, width, min_pixels, max_pixels))


def _too_many_bytes(size_bytes: int, max_image_bytes: int) -> ItemError:
    return ItemError(
        "IMAGE_TOO_LARGE", f"image has {size_bytes} bytes; the server takes {max_image_bytes}. Compress it."
    )


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
        The image is cut short, its data are broken, or its samples have no defined range.
    """
    with closing(opened.picture) as picture:
        rgb = picture.decode().resize((opened.width, opened.height), Resampling.BICUBIC)
    rows, columns = opened.grid
    frames = out.view(PATCH_ROW).reshape(rows, columns, MERGE, MERGE, 3, TEMPORAL, PATCH_PX)
    for channel, band in enumerate(rgb.split()):
        pixels = np.asarray(band).view(PATCH_ROW).reshape(rows, MERGE, PATCH_PX, columns, MERGE)
        frames[:, :, :, :, channel] = pixels.transpose(0, 3, 1, 4, 2)[:, :, :, :, None]  # both frames
