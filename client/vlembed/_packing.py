"""Split work into packs that the server takes.

Knows the bounds, and how to bound an item's cost from above without a tokenizer; knows nothing of connections. A wrong
guess is harmless: the server refuses too large a pack, and the client halves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ._items import PreparedItem

TOKEN_PX = 32  # a visual token is 32 x 32 px of the resized image
TEMPLATE_TOKENS = 40  # more than the prompt around an item has, the default instruction included
MAX_PACK_BYTES = 64 << 20  # of a request, on top of the server's own bounds: what both sides hold at once

Pack: TypeAlias = Mapping[int, PreparedItem]  # the items of one request, by their index in the call


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

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(mine - its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def packs(self, bounds: Mapping[str, int]) -> float:
        """Return how many packs it fills at least."""
        return max(
            self.num_items / bounds["max_items"],
            self.size_bytes / MAX_PACK_BYTES,
            self.tokens / bounds["max_pack_tokens"],
            self.image_tokens / bounds["max_pack_image_tokens"],
        )

    def fits(self, bounds: Mapping[str, int]) -> bool:
        """Tell whether the server takes a pack of this cost."""
        return self.packs(bounds) <= 1 and not (self.num_images and self.num_blanks)  # there "" would be no text


class CostedItem(NamedTuple):
    """An item that waits to be packed."""

    item: PreparedItem
    cost: Cost


def split(items: Sequence[PreparedItem], bounds: Mapping[str, int], max_pixels: int | None) -> Iterator[Pack]:
    """Yield packs of neighbours; an item that fits nowhere is a pack by itself."""
    pack: dict[int, PreparedItem] = {}
    total = Cost()
    for index, item in enumerate(items):
        cost = cost_of(item, bounds, max_pixels)
        if pack and not (total + cost).fits(bounds):
            yield pack
            pack, total = {}, Cost()
        pack[index] = item
        total += cost
    if pack:
        yield pack


def take_even(waiting: dict[int, CostedItem], bounds: Mapping[str, int]) -> dict[int, CostedItem]:
    """Take a pack out of what waits: the oldest item, and such others that all packs to come cost about the same.

    If what waits fills k packs, that is every k-th item in the order of their cost. Nothing would be gained by packing
    items of one size: the server pads nothing, and batches packs with those of others.
    """
    total = sum((costed.cost for costed in waiting.values()), Cost())
    num_packs = math.ceil(total.packs(bounds))
    ranked = sorted(waiting, key=lambda index: (waiting[index].cost.image_tokens, waiting[index].cost.tokens))
    oldest = next(iter(waiting))
    sample = ranked[ranked.index(oldest) % num_packs :: num_packs]
    taken: dict[int, CostedItem] = {}
    total = Cost()
    for index in [oldest, *(index for index in sample if index != oldest)]:
        if not taken or (total + waiting[index].cost).fits(bounds):
            taken[index] = waiting.pop(index)
            total += taken[index].cost
    return dict(sorted(taken.items()))


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
