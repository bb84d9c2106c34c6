"""Embed text and images with a Qwen3-VL-Embedding model on NVIDIA Triton, compare and search them."""

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
from ._index import Index
from ._info import ServerInfo
from ._items import Item
from ._result import EmbeddedItem, Embeddings
from ._retry import Retry
from ._similarity import TopK, similarity, top_k
from ._store import IndexInfo, Match
from ._transport import TLS, Transport

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "ConnectError",
    "EmbeddedItem",
    "EmbeddingClient",
    "Embeddings",
    "Index",
    "IndexInfo",
    "InvalidInputError",
    "Item",
    "ItemError",
    "Match",
    "MissingExtraError",
    "OutputError",
    "OverloadedError",
    "ProtocolError",
    "RequestTimeoutError",
    "Retry",
    "ServerError",
    "ServerInfo",
    "TopK",
    "Transport",
    "VlembedError",
    "similarity",
    "top_k",
]
