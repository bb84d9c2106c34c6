"""Until EmbeddingClient.embed_many is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from .._exceptions import InvalidInputError


@dataclass
class EmbeddedItem:
    index: int
    embedding: Any
    text_tokens: int
    image_tokens: int
    fingerprint: str


def embed_many(client: Any, items: Any, *, on_error: str, **options: Any) -> Iterator[Any]:
    items, start = iter(items), 0
    while chunk := list(islice(items, 64)):
        left, bad = list(range(len(chunk))), dict[int, Any]()
        while left:
            try:
                result = client.embed([chunk[i] for i in left], **options)
                break
            except InvalidInputError as error:
                if not error.items:
                    raise
                bad |= {left[item.index]: item for item in error.items}
                left = [i for i in left if i not in bad]
        for i in range(len(chunk)):
            if i in bad:
                yield bad[i]
            else:
                j = left.index(i)
                yield EmbeddedItem(
                    start + i, np.array(result)[j], result.text_tokens[j], result.image_tokens[j], result.fingerprint
                )
        start += len(chunk)
