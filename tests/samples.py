"""Texts and images that tests share, made on the fly."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

TEXTS = {
    "one letter": "a",
    "sentence": "A photograph of a golden retriever puppy.",
    "Chinese": "一只猫在沙发上睡觉。埃菲尔铁塔的日落。",
    "Arabic": "قطة تنام على الأريكة. مرحبا بالعالم.",
    "emoji": "🐱🐶🚀 👩‍👩‍👧‍👦 🏳️‍🌈 é ﬁ",  # joiners, a combining accent, a ligature
    "spaces": "  leading,\n\n\ttabs and trailing  \n",
    "empty": "",
    "code": "def f(x):\n    return x ** 2  # <think> it's 100% fine",
}
INSTRUCTIONS = [
    "",
    "  ",
    "Retrieve images or text relevant to the user's query.",
    "  Find it ",
    "找到它",
    "查询。",
    "Why?",
]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]  # I;16 holds an 8-bit picture, scaled by 257


def image(width: int = 96, height: int = 64, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return smooth colours with noise, in any mode; RGBA and LA with every opacity."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack(
        [np.sin(columns / 9 + seed), np.cos(rows / 7), np.sin((rows + columns) / 13), np.cos(columns / 21)]
    )
    pixels = (127 + 90 * waves + generator.integers(-30, 30, waves.shape)).clip(0, 255).astype(np.uint8)
    rgba = Image.fromarray(np.moveaxis(pixels, 0, -1), "RGBA")
    if mode == "I;16":
        return Image.fromarray(pixels[0].astype(np.uint16) * 257)
    if mode == "P":
        return rgba.convert("RGB").quantize(64)
    return rgba if mode == "RGBA" else rgba.convert(mode)


def encode(picture: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Return an encoded image."""
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str = "image/png") -> bytes:
    """Return a data: URI."""
    return f"data:{media_type};base64,".encode() + base64.b64encode(data)
