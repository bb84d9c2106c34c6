"""What `embed` returns."""

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


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Join the rows of at least one part."""
    return Embeddings(
        array=np.concatenate([part.array for part in parts]),
        text_tokens=np.concatenate([part.text_tokens for part in parts]),
        image_tokens=np.concatenate([part.image_tokens for part in parts]),
        fingerprint=parts[0].fingerprint,
    )
