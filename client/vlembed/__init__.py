"""Embed text and images with a Qwen3-VL-Embedding model on NVIDIA Triton: `EmbeddingClient`, and `similarity`."""

from ._client import EmbeddingClient
from ._exceptions import (
    ConnectError,
    InvalidInputError,
    ItemError,
    MissingExtraError,
    OutputError,
    OverloadedError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
    VlembedError,
)
from ._info import ServerInfo
from ._items import Item
from ._result import Embeddings
from ._similarity import similarity
from ._transport import TLS, Transport

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "ConnectError",
    "EmbeddingClient",
    "Embeddings",
    "InvalidInputError",
    "Item",
    "ItemError",
    "MissingExtraError",
    "OutputError",
    "OverloadedError",
    "ProtocolError",
    "RequestTimeoutError",
    "ServerError",
    "ServerInfo",
    "Transport",
    "VlembedError",
    "similarity",
]
