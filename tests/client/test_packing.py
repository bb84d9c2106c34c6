"""Packs: neighbours, in order, within the bounds; costs against the server's own rules."""

from __future__ import annotations

import numpy as np
import pytest

from images import TOKEN_PX, smart_resize
from preprocessing import Bounds
from tests.samples import encode, image
from vlembed._items import PreparedItem
from vlembed._packing import MAX_PACK_BYTES, Cost, CostedItem, cost_of, deal, num_image_tokens, split

BOUNDS = vars(Bounds())
SIZES = [(16, 16), (33, 65), (100, 75), (640, 480), (1920, 1080), (4000, 3000), (1, 200), (200, 1), (3200, 16), (7, 9)]


def text(size_bytes: int) -> PreparedItem:
    return PreparedItem(text=b"a" * size_bytes, image=b"", instruction=b"")


def picture(data: bytes) -> PreparedItem:
    return PreparedItem(text=b"", image=data, instruction=b"")


@pytest.mark.parametrize("max_pixels", [4096, 65_536, 1_843_200])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_image_tokens_are_the_servers(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    header = encode(image(1, 1))[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    rows, columns = smart_resize(height, width, BOUNDS["min_pixels"], max_pixels)
    assert num_image_tokens(picture(header), BOUNDS["min_pixels"], max_pixels) == rows * columns // TOKEN_PX**2


def test_images_of_unknown_size_count_as_the_largest() -> None:
    assert num_image_tokens(picture(encode(image(), "WEBP")), 4096, 1_843_200) == 1800


def test_packs_are_neighbours_within_the_bounds() -> None:
    generator = np.random.default_rng(0)
    large = encode(image(1000, 1000))
    items = [picture(large) if generator.random() < 0.1 else text(int(generator.integers(1, 9000))) for _ in range(500)]
    packs = list(split(items, BOUNDS, None))
    assert [index for pack in packs for index in pack] == list(range(len(items)))
    assert 1 < len(packs) < len(items) / 2
    for pack, after in zip(packs, [*packs[1:], None], strict=True):
        cost = sum((cost_of(items[index], BOUNDS, None) for index in pack), Cost())
        assert cost.fits(BOUNDS)
        if after is not None:  # no pack could have taken one more
            assert not (cost + cost_of(items[next(iter(after))], BOUNDS, None)).fits(BOUNDS)


@pytest.mark.parametrize(
    ("items", "sizes"),
    [
        ([], []),
        ([text(1)] * 130, [64, 64, 2]),
        ([text(8000)] * 5, [2, 2, 1]),
        ([picture(encode(image(), "WEBP"))] * 5, [2, 2, 1]),
        ([picture(b"x" * (MAX_PACK_BYTES // 2))] * 3, [2, 1]),
        ([picture(b"x" * (MAX_PACK_BYTES + 1))] * 2, [1, 1]),
        ([text(0), text(0), picture(b"x"), text(1), text(0)], [2, 2, 1]),
    ],
    ids=["nothing", "items", "tokens", "visual tokens", "bytes", "too large alone", "empty texts apart from images"],
)
def test_each_bound_splits(items: list[PreparedItem], sizes: list[int]) -> None:
    assert [len(pack) for pack in split(items, BOUNDS, None)] == sizes


def test_max_pixels_makes_images_cheap() -> None:
    items = [picture(encode(image(), "WEBP"))] * 64
    assert len(list(split(items, BOUNDS, 4096))) == 1


def test_an_instruction_costs() -> None:
    plain, instructed = text(10), PreparedItem(text=b"a" * 10, image=b"", instruction=b"b" * 100)
    assert cost_of(instructed, BOUNDS, None).tokens == cost_of(plain, BOUNDS, None).tokens + 100


# --- packs of even cost ---


def costed(items: list[PreparedItem]) -> dict[int, CostedItem]:
    return {index: CostedItem(item, cost_of(item, BOUNDS, None)) for index, item in enumerate(items)}


def mixed(num_items: int) -> list[PreparedItem]:
    generator = np.random.default_rng(0)
    small, large = encode(image(200, 200)), encode(image(600, 600))
    kinds = [lambda: text(int(generator.integers(1, 200))), lambda: text(2000), lambda: picture(small)]
    return [picture(large) if generator.random() < 0.05 else kinds[generator.integers(3)]() for _ in range(num_items)]


def test_dealt_packs_cost_about_the_same() -> None:
    """Sort the items by kind: packs in that order would be of one kind each."""
    items = sorted(mixed(400), key=lambda item: (len(item.image), len(item.text)))
    waiting = costed(items)
    packs = deal(waiting, BOUNDS, 100)
    costs = [sum((costed.cost for costed in pack.values()), Cost()) for pack in packs]
    assert len(packs) > 5
    assert all(cost.fits(BOUNDS) for cost in costs)
    for name, largest in (("num_items", 1), ("tokens", 2040), ("image_tokens", 361)):
        values = [getattr(cost, name) for cost in costs]
        assert max(values) - min(values) <= 2 * largest, name


def test_what_is_dealt_is_the_oldest_and_nothing_is_lost() -> None:
    waiting, seen = costed(mixed(400)), []
    while waiting:
        oldest = next(iter(waiting))
        packs = deal(waiting, BOUNDS, 4)
        assert any(oldest in pack for pack in packs)
        assert 1 <= len(packs) <= 4
        assert all(list(pack) == sorted(pack) for pack in packs)
        seen += [index for pack in packs for index in pack]
        assert max(seen) <= len(seen) + 64  # no item is far ahead of another
    assert sorted(seen) == list(range(400))


def test_empty_texts_are_dealt_apart_from_images() -> None:
    waiting = costed([text(0), picture(b"x"), text(0), picture(b"x")])
    while waiting:
        for pack in deal(waiting, BOUNDS, 4):
            assert sum((costed.cost for costed in pack.values()), Cost()).fits(BOUNDS)


def test_an_item_that_fits_nowhere_is_a_pack() -> None:
    waiting = costed([picture(b"x" * (MAX_PACK_BYTES + 1)), text(1)])
    assert [list(pack) for pack in deal(waiting, BOUNDS, 1)] == [[0]]
