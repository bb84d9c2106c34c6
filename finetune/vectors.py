"""The sides of a run, each embedded once, and their vectors as the model that sentence-transformers' evaluators ask.

Knows neither metrics nor how a side becomes a vector. Letters: n distinct sides, D hidden size, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.util import cos_sim

from finetune.data import DataError, Side
from vlembed import InvalidInputError

MAX_LISTED = 20  # bad sides that an error shows


class Encoder(Protocol):
    """What embeds: `ServedEncoder` or `CheckpointEncoder`."""

    def identity(self) -> dict[str, Any]:
        """Say what embeds, as JSON."""

    def encode(self, sides: Sequence[Side]) -> npt.NDArray[np.float32]:
        """Return unit vectors (n, D), or raise an `InvalidInputError` that lists every bad side."""


class VectorTable:
    """The distinct sides of all tasks; a task knows its sides by their row.

    To an evaluator it is a model that encodes rows: it looks vectors up, and cuts them to a Matryoshka size as the
    model itself does.
    """

    similarity_fn_name = "cosine"
    similarity = staticmethod(cos_sim)

    def __init__(self) -> None:
        self.sides: list[Side] = []
        self._places: list[str] = []  # file:line where a side stands first
        self._rows: dict[tuple[str, str, str], int] = {}
        self._vectors = np.empty((0, 0), np.float32)
        self.model_card_data = _NoModelCard()

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def dimensions(self) -> int:
        """D."""
        return self._vectors.shape[1]

    def add(self, side: Side, path: Path, line: int) -> int:
        """Return the row of a side."""
        key = (side["text"], side["image"], side["instruction"])
        row = self._rows.setdefault(key, len(self.sides))
        if row == len(self.sides):
            self.sides.append(side)
            self._places.append(f"{path}:{line}")
        return row

    def embed(self, encoder: Encoder) -> None:
        """Embed every side.

        Raises
        ------
        DataError
            Naming file and line of every side that is refused.
        """
        try:
            self._vectors = encoder.encode(self.sides)
        except InvalidInputError as error:
            if not error.items:
                raise
            lines = [f"{self._places[bad.index]}: {bad.code} {bad.message}" for bad in error.items[:MAX_LISTED]]
            if len(error.items) > MAX_LISTED:
                lines.append(f"and {len(error.items) - MAX_LISTED} more")
            raise DataError(f"{len(error.items)} items are refused:\n" + "\n".join(lines)) from error

    def lookup(self, rows: Sequence[int], dimensions: int | None = None) -> npt.NDArray[np.float32]:
        """Return unit vectors (len(rows), d): the first d numbers, scaled to unit norm again."""
        vectors = self._vectors[np.asarray(rows, np.int64)]
        if dimensions is None or dimensions == self.dimensions:
            return vectors
        vectors = vectors[:, :dimensions]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def encode(
        self, rows: Sequence[int], *, convert_to_tensor: bool = False, truncate_dim: int | None = None, **_: Any
    ) -> npt.NDArray[np.float32] | torch.Tensor:
        """Return vectors as evaluators ask for them; see `SentenceTransformer.encode`."""
        vectors = self.lookup(rows, truncate_dim)
        return torch.from_numpy(vectors) if convert_to_tensor else vectors

    encode_query = encode
    encode_document = encode


class _NoModelCard:
    """Evaluators note their results in a model's card; the report is elsewhere."""

    def set_evaluation_metrics(self, *_: Any) -> None:
        """Note nothing."""
