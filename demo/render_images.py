"""Render the quickstart's images from the colour bitmaps of the font Noto Color Emoji (Debian: fonts-noto-color-emoji).

Run it as `python -m demo.render_images`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE_PX = 109  # the only size of the font's bitmaps, 136 x 128 pixels
SIDE_PX = 160  # of the square that a glyph stands in
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
}


def render(glyph: str) -> Image.Image:
    """Draw one glyph in the middle of a transparent square."""
    image = Image.new("RGBA", (SIDE_PX, SIDE_PX))
    middle = (SIDE_PX / 2, SIDE_PX / 2)
    font = ImageFont.truetype(FONT, SIZE_PX)
    ImageDraw.Draw(image).text(middle, glyph, font=font, embedded_color=True, anchor="mm")
    return image


if __name__ == "__main__":
    for name, glyph in GLYPHS.items():
        render(glyph).save(IMAGES / f"{name}.png", optimize=True)
