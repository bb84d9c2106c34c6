"""What a server says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._exceptions import ProtocolError

BOUNDS = (  # the advertised ones that the client splits and checks by
    "max_items",
    "max_tokens",
    "max_pack_tokens",
    "max_pack_image_tokens",
    "max_pack_pixels",
    "max_pack_text_bytes",
    "max_text_bytes",
    "max_image_bytes",
    "min_pixels",
    "max_pixels",
)


@dataclass(frozen=True)
class ServerInfo:
    """What is served."""

    checkpoint: str
    fingerprint: str  # vectors of two servers are comparable only where it is the same
    dimensions: int  # of a vector, if no fewer are asked for
    min_dimensions: int
    default_instruction: str
    precision: str
    versions: Mapping[str, str]  # of the packages that exported the model
    bounds: Mapping[str, int]  # of a request and of an item; the server splits nothing, the client does

    @classmethod
    def from_tensor(cls, tensor: npt.NDArray[Any], url: str) -> ServerInfo:
        """Read the answer of the model `info`.

        Raises
        ------
        ProtocolError
            It is not one string, or not what a vlembed server says.
        """
        if tensor.dtype != np.object_ or tensor.shape != (1,):
            raise ProtocolError(
                f"info of {url} is {tensor.dtype} {tensor.shape} instead of one string. Is it a vlembed server?"
            )
        return cls.from_json(tensor[0])

    @classmethod
    def from_json(cls, data: bytes) -> ServerInfo:
        """Read what the model `info` says, and ignore what a newer server adds.

        Raises
        ------
        ProtocolError
            It is no JSON object, or lacks something.
        """
        try:
            told = json.loads(data)
            return cls(
                checkpoint=str(told["checkpoint"]),
                fingerprint=str(told["fingerprint"]),
                dimensions=int(told["dimensions"]),
                min_dimensions=int(told["min_dimensions"]),
                default_instruction=str(told["default_instruction"]),
                precision=str(told["precision"]),
                versions=dict(told["versions"]),
                bounds={name: int(told["bounds"][name]) for name in dict.fromkeys([*BOUNDS, *told["bounds"]])},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"the server's info is not what a vlembed server says ({error!r} in {data[:80]!r}). "
                "Use a client and a server of the same release."
            ) from error
