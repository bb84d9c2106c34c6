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
    text_bytes: int = 0
    pixels: int = 0  # of the images whose header is easily read
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
            self.text_bytes / bounds["max_pack_text_bytes"],
            self.pixels / bounds["max_pack_pixels"],
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


def deal(waiting: dict[int, CostedItem], bounds: Mapping[str, int], num_packs: int) -> list[dict[int, CostedItem]]:
    """Take the oldest items, as many as some packs hold, and deal them out so that these packs cost about the same.

    In the order of their cost, every k-th item goes into one of k packs, as cards are dealt; what does not fit goes on
    waiting. Packs of similar items would gain nothing: the server pads nothing, and batches packs with those of others.
    """
    group: dict[int, CostedItem] = {}
    total = Cost()
    for index, costed in waiting.items():
        if group and (total + costed.cost).packs(bounds) > num_packs:
            break
        group[index] = costed
        total += costed.cost
    ranked = sorted(group, key=lambda index: (group[index].cost.image_tokens, group[index].cost.tokens))
    step = math.ceil(total.packs(bounds))
    packs = []
    for start in range(min(step, len(ranked))):
        pack: dict[int, CostedItem] = {}
        cost = Cost()
        for index in sorted(ranked[start::step]):  # what does not fit is the newest
            if not pack or (cost + group[index].cost).fits(bounds):
                pack[index] = waiting.pop(index)
                cost += group[index].cost
        packs.append(pack)
    return packs


def cost_of(item: PreparedItem, bounds: Mapping[str, int], max_pixels: int | None) -> Cost:
    """Bound what an item costs: a token is a byte at least, and no accepted item has more than `max_tokens`."""
    image_tokens = num_image_tokens(item, bounds["min_pixels"], max_pixels or bounds["max_pixels"])
    tokens = TEMPLATE_TOKENS + len(item.instruction) + len(item.text) + image_tokens
    return Cost(
        num_items=1,
        size_bytes=len(item.instruction) + len(item.text) + len(item.image),
        tokens=min(tokens, bounds["max_tokens"]),
        image_tokens=image_tokens,
        text_bytes=TEMPLATE_TOKENS + len(item.instruction) + len(item.text),
        pixels=math.prod(item.image_size or (0,)),
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
