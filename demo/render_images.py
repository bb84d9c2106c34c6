"""Render the quickstart's images from the colour bitmaps of the font Noto Color Emoji (Debian: fonts-noto-color-emoji).

Run it as `python -m demo.render_images`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE_PX = 109  # the only size of the font's bitmaps, 136 x 128 pixels
GLYPH_PX = 136  # the wider side of the bitmaps
SIDE_PX = 64  # of a picture
WHITE = (255, 255, 255)
IMAGES = Path(__file__).with_name("images")
GLYPHS = {
    "red_apple": "🍎",
    "cat_face": "🐱",
    "dog": "🐕",
    "bicycle": "🚲",
    "rocket": "🚀",
    "tree": "🌳",
    "fish": "🐟",
    "house": "🏠",
    "soccer_ball": "⚽",
    "delivery_truck": "🚚",
    "horse_face": "🐴",
    "volcano": "🌋",
    "open_book": "📖",
    "star": "⭐",
    "hot_beverage": "☕",
    "shortcake": "🍰",
    "closed_umbrella": "🌂",
    "elephant": "🐘",
}


@cache
def font() -> ImageFont.FreeTypeFont:
    """Load the font, once."""
    return ImageFont.truetype(FONT, SIZE_PX)


def render(glyph: str, side_px: int = GLYPH_PX) -> Image.Image:
    """Draw one glyph in the middle of a transparent square."""
    image = Image.new("RGBA", (side_px, side_px))
    middle = (side_px / 2, side_px / 2)
    ImageDraw.Draw(image).text(middle, glyph, font=font(), embedded_color=True, anchor="mm")
    return image


def on_background(glyph: Image.Image, side_px: int = SIDE_PX, colour: tuple[int, int, int] = WHITE) -> Image.Image:
    """Put a transparent square on a colour, and fit it into a square of `side_px` pixels."""
    picture = Image.new("RGBA", glyph.size, colour)
    picture.alpha_composite(glyph)
    return picture.convert("RGB").resize((side_px, side_px), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    for name, glyph in GLYPHS.items():
        on_background(render(glyph)).save(IMAGES / f"{name}.png", optimize=True)
