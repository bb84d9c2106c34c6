"""What a caller may pass to an index, checked; knows no store and embeds nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._checks import whole_number
from ._client import EmbeddingClient, ItemOptions
from ._exceptions import InvalidInputError
from ._filters import encode_metadata, is_plain
from ._items import ItemLike, as_sequence
from ._result import Embeddings
from ._store import IndexInfo

Items: TypeAlias = "ItemLike | Iterable[ItemLike] | Embeddings | npt.NDArray[Any]"
Batch: TypeAlias = "Sequence[ItemLike] | Embeddings | npt.NDArray[Any]"


def as_batch(items: Items) -> Batch:
    """Return vectors as they are, an array as (n, d), and items as a sequence."""
    if isinstance(items, Embeddings):
        return items
    if isinstance(items, np.ndarray) and items.ndim < 3 and items.dtype.kind not in "OSU":
        return np.atleast_2d(items)
    return as_sequence(items)


def check_rows(
    batch: Batch, ids: Sequence[str], metadata: Sequence[Mapping[str, Any] | None] | None
) -> tuple[list[str], list[str]]:
    """Return the ids of a batch and its metadata as texts, as many of each.

    Raises
    ------
    InvalidInputError
        Naming the ids or the metadata that are wrong.
    """
    if isinstance(ids, Set | Mapping):
        raise InvalidInputError(f"ids are a {type(ids).__name__}, whose order is not that of the items. Pass a list.")
    ids = check_ids(ids)
    texts = _encode_all([None] * len(ids) if metadata is None else metadata)
    if not len(batch) == len(ids) == len(texts):
        raise InvalidInputError(
            f"there are {len(batch)} items, {len(ids)} ids and {len(texts)} metadata. Pass as many of each."
        )
    if len(set(ids)) < len(ids):
        twice = [own for own, count in Counter(ids).items() if count > 1]
        raise InvalidInputError(f"ids are given more than once: {listed(twice)}.")
    return ids, texts


def check_options(batch: Batch, options: ItemOptions) -> None:
    """Refuse keyword arguments that no item has, or any with vectors.

    Raises
    ------
    InvalidInputError
        Naming the first.
    """
    offered = () if isinstance(batch, Embeddings | np.ndarray) else tuple(ItemOptions.__annotations__)
    for name in options:
        if name not in offered:
            rule = f"Items take {', '.join(offered)}." if offered else "Vectors take none that is for items."
            raise InvalidInputError(f"{name} is no argument of this method. {rule}")


def check_ids(ids: Iterable[str]) -> list[str]:
    """Return ids as a list, each of them one."""
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidInputError(f"ids is {ids!r}. Pass a list of them.")
    ids = list(ids)
    if bad := [own for own in ids if not isinstance(own, str) or not own or not is_plain(own)]:
        raise InvalidInputError(
            f"ids are non-empty str without control characters, not {listed(bad)}. Convert others by str()."
        )
    return ids


def _encode_all(metadata: Sequence[Mapping[str, Any] | None]) -> list[str]:
    if isinstance(metadata, Mapping | str) or not isinstance(metadata, Iterable):
        raise InvalidInputError(f"metadata is {metadata!r}. Pass a list, with an object or None for each item.")
    texts = []
    for index, own in enumerate(metadata):
        try:
            texts.append(encode_metadata(own))
        except InvalidInputError as error:
            raise InvalidInputError(f"metadata {index}: {error}") from error
    return texts


def new_info(
    kind: str,
    client: EmbeddingClient | None,
    dimensions: int | None,
    fingerprint: str | None,
    instruction: str,
    options: Mapping[str, int],
) -> IndexInfo:
    """Return what an index is to be; a store checks the kind and its options.

    Raises
    ------
    InvalidInputError
        Naming the argument that is wrong.
    """
    if client is None and (dimensions is None or fingerprint is None):
        raise InvalidInputError(
            "an index needs to know its model. Pass client=EmbeddingClient(...), or dimensions and the fingerprint, "
            "which Embeddings have."
        )
    if client is not None:
        served = client.info()
        dimensions = served.dimensions if dimensions is None else dimensions
        fingerprint = served.fingerprint if fingerprint is None else fingerprint
    if client is None:
        dimensions = whole_number("dimensions", dimensions, 1)
    else:
        dimensions = whole_number(
            "dimensions", dimensions, served.min_dimensions, served.dimensions, taker="this server"
        )
    if not isinstance(fingerprint, str) or not isinstance(instruction, str):
        raise InvalidInputError(f"fingerprint is {fingerprint!r}, instruction {instruction!r}. Pass a str for each.")
    info = IndexInfo(fingerprint, dimensions, instruction, kind, options)
    if client is not None:
        info.check_model("the client's server embeds", served.fingerprint)
    return info


def listed(values: Iterable[Any]) -> str:
    """Name a few values, and count the others."""
    names = sorted({repr(own) for own in values})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
