"""What a caller may pass to an index, checked; knows no store and embeds nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._checks import shown, type_name, whole_number
from ._client import EmbeddingClient, ItemOptions
from ._containers import as_values, is_vectors
from ._exceptions import InvalidInputError
from ._filters import is_plain
from ._items import ItemLike, as_sequence
from ._metadata import encode_metadata
from ._result import Embeddings
from ._store import IndexInfo

Items: TypeAlias = "ItemLike | Iterable[ItemLike] | Embeddings | npt.NDArray[Any]"
Batch: TypeAlias = "Sequence[ItemLike] | Embeddings | npt.NDArray[Any]"


def as_batch(items: Items) -> Batch:
    """Return vectors as they are, an array as (n, d), and items as a sequence."""
    if isinstance(items, Embeddings):
        return items
    if is_vectors(items):
        vectors: npt.NDArray[Any] = np.atleast_2d(items)
        return vectors
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
    if isinstance(ids, Set):
        raise InvalidInputError(f"ids is of type {type_name(ids)}, whose order is not that of the items. Pass a list.")
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
    ids = list(as_values("ids", ids, "Pass a list or a column of str; convert others by str()."))
    if bad := [own for own in ids if not isinstance(own, str) or not own or not is_plain(own)]:
        raise InvalidInputError(
            f"ids are non-empty str without control characters, not {listed(bad)}. Convert others by str()."
        )
    return list(map(str, ids))  # numpy's are subclasses


def _encode_all(metadata: Sequence[Mapping[str, Any] | None]) -> list[str]:
    rule = "Pass a list with a dict or None for each item, as table.to_dict('records') of pandas is."
    texts = []
    for index, own in enumerate(as_values("metadata", metadata, rule)):
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
        raise InvalidInputError(
            f"fingerprint is {shown(fingerprint)}, instruction {shown(instruction)}. Pass a str for each."
        )
    info = IndexInfo(fingerprint, dimensions, instruction, kind, options)
    if client is not None:
        info.check_model("the client's server embeds", served.fingerprint)
    return info


def listed(values: Iterable[Any]) -> str:
    """Name a few values, and count the others."""
    names = sorted({shown(own) for own in values})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
