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
from ._result import EmbeddedItem, Embeddings
from ._retry import Retry
from ._similarity import similarity
from ._transport import TLS, Transport

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "ConnectError",
    "EmbeddedItem",
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
    "Retry",
    "ServerError",
    "ServerInfo",
    "Transport",
    "VlembedError",
    "similarity",
]
