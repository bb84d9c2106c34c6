"""One call as requests: a pack to tensors, and the answer, or what the server says of its items, back.

Letters: n items of the pack, d dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._checks import flag, whole_number
from ._exceptions import InvalidInputError, ItemError, ProtocolError
from ._info import ServerInfo
from ._items import PreparedItem
from ._packing import Pack
from ._result import EmbeddedItem
from ._transport import Tensors, Transport

Outcome: TypeAlias = EmbeddedItem | ItemError

OUTPUTS = ("embedding", "text_tokens", "image_tokens")


@dataclass(frozen=True)
class Call:
    """What all requests of one call share."""

    transport: Transport
    options: Tensors  # dimensions, max_pixels, truncate, as far as they are given
    dimensions: int  # of the rows to come
    fingerprint: str

    @classmethod
    def of(
        cls, transport: Transport, info: ServerInfo, *, dimensions: int | None, max_pixels: int | None, truncate: bool
    ) -> Call:
        """Return the call that has these options, or raise `InvalidInputError` if one is wrong."""
        options = {
            **_option("dimensions", dimensions, info.min_dimensions, info.dimensions),
            **_option("max_pixels", max_pixels, info.bounds["min_pixels"], info.bounds["max_pixels"]),
            **({"truncate": np.array([True])} if flag("truncate", truncate) else {}),
        }
        return cls(transport, options, info.dimensions if dimensions is None else int(dimensions), info.fingerprint)

    def send(self, pack: Pack, deadline: float) -> list[Outcome]:
        """Embed a pack, in halves if it is too large, and return its rows in order, or every bad item and no other.

        Parameters
        ----------
        pack
            n items.
        deadline
            When to give up, by `time.monotonic`.
        """
        try:
            return [*self._embed(pack, deadline)]
        except InvalidInputError as error:
            indexes = list(pack)
            if error.code == "PACK_TOO_LARGE" and len(pack) > 1:
                middle = len(pack) // 2
                halves = indexes[:middle], indexes[middle:]
                return [outcome for half in halves for outcome in self.send({i: pack[i] for i in half}, deadline)]
            if error.code == "PACK_TOO_LARGE":
                return [ItemError(indexes[0], error.code, str(error))]
            if not error.items or max(item.index for item in error.items) >= len(pack):
                raise
            return [ItemError(indexes[item.index], item.code, item.message) for item in error.items]

    def _embed(self, pack: Pack, deadline: float) -> list[EmbeddedItem]:
        answer = self._ask(list(pack.values()), deadline)
        rows = (answer[name] for name in OUTPUTS)
        return [
            EmbeddedItem(index, embedding.copy(), int(text_tokens), int(image_tokens), self.fingerprint)
            for index, embedding, text_tokens, image_tokens in zip(pack, *rows, strict=True)
        ]

    def _ask(self, items: Sequence[PreparedItem], deadline: float) -> Tensors:
        has_images = any(item.image for item in items)
        inputs = {"text": _bytes([item.text for item in items]), **self.options}
        if has_images:
            inputs["image"] = _bytes([item.image for item in items])
        else:
            inputs.pop("max_pixels", None)  # embed_text has no such input
        if any(item.instruction for item in items):
            instructions = [item.instruction for item in items]
            inputs["instruction"] = _bytes(instructions if len(set(instructions)) > 1 else instructions[:1])
        model = "embed" if has_images else "embed_text"
        answer = self.transport.infer(model, inputs, OUTPUTS, deadline - time.monotonic())
        self._check(answer, len(items))
        return answer

    def _check(self, answer: Tensors, num_items: int) -> None:
        expected = {
            "embedding": (np.float32, (num_items, self.dimensions)),
            "text_tokens": (np.int32, (num_items,)),
            "image_tokens": (np.int32, (num_items,)),
        }
        for name, (dtype, shape) in expected.items():
            if answer[name].dtype != dtype or answer[name].shape != shape:
                raise ProtocolError(
                    f"{name} is {answer[name].dtype} {answer[name].shape}; {np.dtype(dtype)} {shape} was asked for. "
                    "If the server was given another model, make a new EmbeddingClient."
                )
        if not np.isfinite(answer["embedding"]).all():
            raise ProtocolError("the server's vectors are not finite. Report it with the server's log.")


def _option(name: str, value: int | None, low: int, high: int) -> dict[str, npt.NDArray[Any]]:
    """Return the tensor of an option, or none if it is not given."""
    if value is None:
        return {}
    value = whole_number(name, value, low, high, taker="this server", cure=f"Leave it out for {high}.")
    return {name: np.array([value], np.int32)}


def _bytes(values: Sequence[bytes]) -> npt.NDArray[Any]:
    return np.array(values, np.object_)
