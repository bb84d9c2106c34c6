"""Sides to vectors by a checkpoint in this process. Knows nothing of tasks or metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data import Side
from finetune.model import find_checkpoint, load_model
from preprocessing import PackError
from vlembed import InvalidInputError, ItemError

BATCH_SIZE = 8


class CheckpointEncoder:
    """What a checkpoint makes of sides: `finetune.model.load_model`, with the errors of the client.

    Parameters
    ----------
    checkpoint
        A folder, or a hub id.
    max_pixels
        What images are scaled down to at most; left out, the server's default.

    Raises
    ------
    CheckpointError
        It cannot be loaded, or `max_pixels` is out of the server's bounds.
    """

    def __init__(self, checkpoint: str, *, max_pixels: int | None = None) -> None:
        self.max_pixels = max_pixels
        self._folder = find_checkpoint(checkpoint)
        self._model = load_model(checkpoint, max_pixels=max_pixels)
        self._name = self._folder.resolve().name if Path(checkpoint).is_dir() else checkpoint

    def identity(self) -> dict[str, Any]:
        """Say what embeds."""
        return {
            "checkpoint": self._name,
            "weights_sha256": _hash_weights(self._folder),
            "dimensions": self._model.get_embedding_dimension(),
        }

    def encode(self, sides: Sequence[Side]) -> npt.NDArray[np.float32]:
        """Embed n sides as float32 (n, D), of unit norm.

        Raises
        ------
        InvalidInputError
            Listing every bad side.
        """
        model: Any = self._model
        try:
            return np.asarray(model.encode(list(sides), batch_size=BATCH_SIZE, show_progress_bar=False))
        except PackError as error:  # which side of which batch it is of, sentence-transformers alone knows
            if bad := [item for index, side in enumerate(sides) for item in self._refusal(index, side)]:
                raise InvalidInputError.of_items(bad, len(sides)) from error
            raise

    def _refusal(self, index: int, side: Side) -> list[ItemError]:
        model: Any = self._model
        try:
            model[0].preprocess([side])
        except PackError as error:
            told = json.loads(str(error).partition("\n")[2])["items"][0]
            return [ItemError(index, told["code"], told["message"])]
        return []


def _hash_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]
