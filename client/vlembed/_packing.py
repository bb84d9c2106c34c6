"""Split work into packs that the server takes.

Knows the bounds, and how to bound an item's cost from above without a tokenizer; knows nothing of connections. A wrong
guess is harmless: the server refuses too large a pack, and the client halves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ._items import PreparedItem

TOKEN_PX = 32  # a visual token is 32 x 32 px of the resized image
TEMPLATE_TOKENS = 40  # more than the prompt around an item has, the default instruction included
MAX_PACK_BYTES = 64 << 20  # of a request, on top of the server's own bounds: what both sides hold at once


@dataclass(frozen=True)
class Cost:
    """An upper bound of what a pack or an item costs."""

    num_items: int = 0
    size_bytes: int = 0
    tokens: int = 0
    image_tokens: int = 0
    num_images: int = 0
    num_blanks: int = 0  # items without image and with an empty text

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def fits(self, bounds: Mapping[str, int]) -> bool:
        """Tell whether the server takes a pack of this cost."""
        return (
            self.num_items <= bounds["max_items"]
            and self.size_bytes <= MAX_PACK_BYTES
            and self.tokens <= bounds["max_pack_tokens"]
            and self.image_tokens <= bounds["max_pack_image_tokens"]
            and not (self.num_images and self.num_blanks)  # in a pack with images an empty text is no text
        )


def split(items: Sequence[PreparedItem], bounds: Mapping[str, int], max_pixels: int | None) -> Iterator[range]:
    """Yield packs of neighbours, as ranges of indexes; an item that fits nowhere is a pack by itself."""
    start, pack = 0, Cost()
    for index, item in enumerate(items):
        cost = cost_of(item, bounds, max_pixels)
        if index > start and not (pack + cost).fits(bounds):
            yield range(start, index)
            start, pack = index, Cost()
        pack += cost
    if items:
        yield range(start, len(items))


def cost_of(item: PreparedItem, bounds: Mapping[str, int], max_pixels: int | None) -> Cost:
    """Bound what an item costs: a token is a byte at least, and no accepted item has more than `max_tokens`."""
    image_tokens = num_image_tokens(item, bounds["min_pixels"], max_pixels or bounds["max_pixels"])
    tokens = TEMPLATE_TOKENS + len(item.instruction) + len(item.text) + image_tokens
    return Cost(
        num_items=1,
        size_bytes=len(item.instruction) + len(item.text) + len(item.image),
        tokens=min(tokens, bounds["max_tokens"]),
        image_tokens=image_tokens,
        num_images=int(bool(item.image)),
        num_blanks=int(not item.image and not item.text),
    )


def num_image_tokens(item: PreparedItem, min_pixels: int, max_pixels: int) -> int:
    """Return the visual tokens of an item: exact if its header can be read, else the most it can have in general."""
    if not item.image:
        return 0
    if (size := item.image_size) is None:
        return max_pixels // TOKEN_PX**2
    columns, rows = (round(side / TOKEN_PX) for side in size)
    pixels, area = rows * columns * TOKEN_PX**2, math.prod(size)
    if pixels > max_pixels:
        columns, rows = (max(1, math.floor(side / math.sqrt(area / max_pixels) / TOKEN_PX)) for side in size)
    elif pixels < min_pixels:
        columns, rows = (math.ceil(side * math.sqrt(min_pixels / area) / TOKEN_PX) for side in size)
    return rows * columns
