"""What `embed` and `embed_many` return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of n items in the order of the call, and what they cost. numpy takes it as an array (n, d).

    Vectors are comparable only where `fingerprint`, which names the model and all its settings, is the same.
    """

    array: npt.NDArray[np.float32]  # (n, d), unit norm
    text_tokens: npt.NDArray[np.int32]  # (n,), the template's included
    image_tokens: npt.NDArray[np.int32]  # (n,)
    fingerprint: str

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: npt.DTypeLike = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self.array if dtype is None else self.array.astype(dtype, copy=False)
        return array.copy() if copy and array is self.array else array


@dataclass(frozen=True, eq=False)
class EmbeddedItem:
    """The vector of one item, and what it cost."""

    index: int  # of the item, as the caller passed it
    embedding: npt.NDArray[np.float32]  # (d,), unit norm
    text_tokens: int  # the template's included
    image_tokens: int
    fingerprint: str  # as of `Embeddings`


def stack(items: Sequence[EmbeddedItem], dimensions: int, fingerprint: str) -> Embeddings:
    """Join items as rows; there may be none."""
    rows = [item.embedding for item in items]
    return Embeddings(
        array=np.stack(rows) if rows else np.empty((0, dimensions), np.float32),
        text_tokens=np.array([item.text_tokens for item in items], np.int32),
        image_tokens=np.array([item.image_tokens for item in items], np.int32),
        fingerprint=fingerprint,
    )
