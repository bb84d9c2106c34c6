"""Sides to vectors by a running server, through the client. Knows nothing of tasks or metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlembed import EmbeddingClient, InvalidInputError, Item, ItemError

BLOCK_ITEMS = 256  # of one call of the client: four full packs in flight, and no more images in memory than that
TIMEOUT_S = 600.0  # of a request: on a CPU, a full pack of the 2B takes longer than the client's default


class ServedEncoder:
    """What a server makes of sides.

    Parameters
    ----------
    url
        As for `vlembed.EmbeddingClient`.
    max_pixels
        What images are scaled down to at most; left out, the server's bound.
    timeout_s
        Of one request.

    Raises
    ------
    VlembedError
        The URL is wrong or the server cannot be reached.
    """

    def __init__(self, url: str, *, max_pixels: int | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url
        self.max_pixels = max_pixels
        self._client = EmbeddingClient(url, timeout_s=timeout_s)
        self.info = self._client.info()

    def identity(self) -> dict[str, Any]:
        """Say what embeds; a URL that the client accepts has no credentials."""
        return {
            "url": self.url,
            "checkpoint": self.info.checkpoint,
            "fingerprint": self.info.fingerprint,
            "dimensions": self.info.dimensions,
            "precision": self.info.precision,
        }

    def encode(
        self, sides: Iterable[Mapping[str, Any]], *, dimensions: int | None = None, truncate: bool = False
    ) -> npt.NDArray[np.float32]:
        """Embed sides; row i is side i.

        Parameters
        ----------
        sides
            n of `finetune.data.Side`; an image may also be anything else that the client takes. They are read as they
            are needed.
        dimensions
            d, a Matryoshka size; left out, all.
        truncate
            Cut texts that are too long instead of refusing them.

        Returns
        -------
        numpy.ndarray
            float32 (n, d), of unit norm.

        Raises
        ------
        VlembedError
            As `EmbeddingClient.embed` does; the items of an `InvalidInputError` are counted from the first side.
        """
        items = (_item(side) for side in sides)
        blocks = [np.empty((0, dimensions or self.info.dimensions), np.float32)]
        num_done = 0
        while block := list(islice(items, BLOCK_ITEMS)):
            try:
                embeddings = self._client.embed(
                    block,
                    dimensions=dimensions,
                    max_pixels=self.max_pixels,
                    truncate=truncate,
                    allow_reference_text=True,  # a side says itself what is text and what is an image
                )
            except InvalidInputError as error:
                if not error.items:
                    raise
                shifted = [ItemError(num_done + item.index, item.code, item.message) for item in error.items]
                raise InvalidInputError.of_items(shifted, num_done + len(block)) from error
            blocks.append(embeddings.array)
            num_done += len(block)
        return np.concatenate(blocks)


def _item(side: Mapping[str, Any]) -> Item:
    image = side.get("image") or None
    return Item(
        text=side.get("text") or (None if image else ""),
        image=Path(image) if isinstance(image, str) else image,
        instruction=side.get("instruction") or None,
    )
