"""Find the emoji that are symbols of their own, and draw them as training sees them and as it never does.

This module knows the font's glyphs and nothing of their names.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable

from PIL import Image

from demo.render_images import GLYPH_PX, font, on_background, render

LARGE_PX = 96
BACKGROUNDS = [(255, 236, 179), (187, 222, 251), (200, 230, 201), (225, 190, 231), (255, 171, 145), (96, 96, 96)]
ROTATION = (15, 30)  # degrees, to either side
KINDS = ("background", "rotation", "small", "large")  # of augmentations


def unwanted(glyph: str) -> str | None:
    """Say why a glyph is no symbol of its own, judged by its code points."""
    if re.search("[\U0001f3fb-\U0001f3ff]", glyph):
        return "skin tones"
    if re.search("[\U0001f1e6-\U0001f1ff\U000e0020-\U000e007f]", glyph):
        return "flags of countries and regions"
    if re.search("[#*0-9\u20e3\U0001f51f]", glyph):
        return "keycaps"
    if re.fullmatch("[\U0001f9b0-\U0001f9b3]", glyph):
        return "hair components"
    return None


def find_symbols(glyphs: Iterable[str]) -> tuple[dict[str, str], Counter[str]]:
    """Find the glyphs that the font draws as one picture of their own.

    Returns
    -------
    symbols : dict
        From symbol id to glyph.
    left_out : Counter
        How many glyphs were left out, by reason.
    """
    one_px = font().getlength("🍎")  # all glyphs are equally wide
    symbols: dict[str, str] = {}
    seen: set[bytes] = set()
    left_out: Counter[str] = Counter()
    for glyph in sorted(glyphs, key=lambda glyph: (len(glyph), glyph)):  # of identical pictures the simplest stays
        if reason := unwanted(glyph):
            left_out[reason] += 1
            continue
        picture = render(glyph)
        pixels = on_background(picture).tobytes()
        if font().getlength(glyph) != one_px:
            left_out["sequences that are not one glyph"] += 1
        elif picture.getbbox() is None:
            left_out["not drawn by the font"] += 1
        elif pixels in seen:
            left_out["drawn like another symbol"] += 1
        else:
            seen.add(pixels)
            symbols["-".join(f"{ord(character):x}" for character in glyph)] = glyph
    return symbols, left_out


def training_picture(glyph: str) -> Image.Image:
    """Draw a glyph as training sees it."""
    return on_background(render(glyph))


def augmented_picture(glyph: str, kind: str, draw: random.Random) -> Image.Image:
    """Draw a glyph as training never sees it; `kind` is one of KINDS."""
    if kind == "background":
        return on_background(render(glyph), colour=draw.choice(BACKGROUNDS))
    if kind == "rotation":
        angle = draw.choice((-1, 1)) * draw.uniform(*ROTATION)
        picture = render(glyph, 2 * GLYPH_PX).rotate(angle, Image.Resampling.BICUBIC)
        edges = picture.getbbox() or ()
        reach = max(GLYPH_PX // 2, *(abs(edge - GLYPH_PX) for edge in edges))  # of the middle; nothing is cut off
        low, high = GLYPH_PX - reach, GLYPH_PX + reach
        return on_background(picture.crop((low, low, high, high)))
    if kind == "small":
        return on_background(render(glyph, 2 * GLYPH_PX))
    return on_background(render(glyph), LARGE_PX)
