"""Images per second on one core: our decoding, resizing and cutting against transformers' Pillow processor.

Both start from the encoded bytes and end with the array that the next step takes: uint8 patches here, float32 pixel
values there.

    ./scripts/benchmark preprocess
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from images import PATCH_SIZE, open_image, write_patches

from .report import rates, report
from .workload import picture

PICTURES = [(512, 512, "PNG"), (640, 480, "JPEG"), (1920, 1080, "JPEG"), (4000, 3000, "JPEG")]
MIN_PIXELS, MAX_PIXELS = 4096, 1_843_200


def ours(data: bytes) -> npt.NDArray[np.uint8]:
    """Return uint8 patches (V, 6144)."""
    opened = open_image(
        data, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, max_image_bytes=2**30, max_image_pixels=2**26
    )
    patches = np.empty((opened.num_tokens, PATCH_SIZE), np.uint8)
    write_patches(opened, patches)
    return patches


def compare(rounds: int, num_images: int) -> dict[str, float]:
    """Return images per second of both, and their ratio, for each of `PICTURES`."""
    processor = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)

    def theirs(data: bytes) -> npt.NDArray[np.float32]:
        return np.asarray(processor(Image.open(io.BytesIO(data)).convert("RGB"))["pixel_values"])

    def repeat(work: Callable[[bytes], object], data: bytes) -> Callable[[], int]:
        def run() -> int:
            for _ in range(num_images):
                work(data)
            return num_images

        return run

    rows = {}
    for width, height, image_format in PICTURES:
        data = picture(width, height, image_format)
        name = f"{width} x {height} {image_format}"
        taken = rates({"ours": repeat(ours, data), "theirs": repeat(theirs, data)}, rounds)
        rows[f"{name}: ours, images/s"] = taken["ours"]
        rows[f"{name}: transformers, images/s"] = taken["theirs"]
        rows[f"{name}: ratio"] = taken["ours"] / taken["theirs"]
    return rows


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=10, help="of each size, in a round")
    arguments = parser.parse_args()
    rows = compare(arguments.rounds, arguments.images)
    report("preprocess", rows, rounds=arguments.rounds, images=arguments.images)


if __name__ == "__main__":
    main()
