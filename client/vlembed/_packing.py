"""Work of any size into packs that a server accepts.

Knows the server's bounds; what an item really costs only the server knows, so these are estimates, and a pack that turns
out too large is halved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence

from ._items import WireItem

PROMPT_TOKENS = 40  # of the template and the default instruction, rounded up
BYTES_PER_TOKEN = 2  # of UTF-8: English has about 4, Chinese 2.5, emoji 1.5
TOKEN_PIXELS = 32 * 32  # of one visual token
MAX_PACK_BYTES = 64 * 2**20  # of one request, so that a client's memory stays bounded


def packs(items: Sequence[WireItem], bounds: Mapping[str, int], max_pixels: int | None) -> Iterator[list[int]]:
    """Yield the indexes of each pack: neighbours together, texts apart from images, so that no text waits for vision.

    Parameters
    ----------
    items
        What is to be sent.
    bounds
        Advertised by the server.
    max_pixels
        Image budget of the call, if it has one.
    """
    for with_image in (False, True):
        pack: list[int] = []
        tokens = visual = size_bytes = 0
        for index, item in enumerate(items):
            if bool(item.image) != with_image:
                continue
            own_visual = _visual_tokens(item.image, bounds, max_pixels) if with_image else 0
            text_tokens = PROMPT_TOKENS + (len(item.text) + len(item.instruction)) // BYTES_PER_TOKEN
            own_tokens = min(own_visual + text_tokens, bounds["max_tokens"])
            fits = (
                len(pack) < bounds["max_items"]
                and tokens + own_tokens <= bounds["max_pack_tokens"]
                and visual + own_visual <= bounds["max_pack_image_tokens"]
                and size_bytes + item.size_bytes <= MAX_PACK_BYTES
            )
            if pack and not fits:
                yield pack
                pack, tokens, visual, size_bytes = [], 0, 0, 0
            pack.append(index)
            tokens, visual, size_bytes = tokens + own_tokens, visual + own_visual, size_bytes + item.size_bytes
        if pack:
            yield pack


def _visual_tokens(image: bytes, bounds: Mapping[str, int], max_pixels: int | None) -> int:
    """Estimate from the image's header where Pillow is installed, and else take the most that is possible."""
    most = max_pixels or bounds["max_pixels"]
    try:
        from PIL import Image

        pixels = math.prod(Image.open(io.BytesIO(image)).size)
    except Exception:  # no Pillow, or no image that it knows: the server will say what is wrong with it
        pixels = most
    return math.ceil(min(max(pixels, bounds["min_pixels"]), most) / TOKEN_PIXELS)
