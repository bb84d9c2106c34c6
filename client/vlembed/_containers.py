"""Containers of many values: columns of tables are taken as lists, tables and mappings are refused.

A data frame or a dict yields names when it is iterated over, and names look like texts. Libraries are recognised by the
attributes of their types, so none of them is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ._checks import shown, type_name
from ._exceptions import InvalidInputError

MISSING = ("NAType", "NaTType")  # the types of what pandas puts in the place of a missing value, beside NaN


def as_values(name: str, container: Any, cure: str) -> Iterable[Any]:
    """Return what holds several values as an iterable of them: arrays and columns of strings as lists.

    Parameters
    ----------
    name
        Of the argument.
    container
        Any iterable, a numpy array (n,) of strings or objects, or a column of pandas, polars or pyarrow.
    cure
        What to pass instead of anything else, for the message.

    Raises
    ------
    InvalidInputError
        It is a table or a mapping, an array of another kind, or no iterable.
    """
    if isinstance(container, np.ndarray):
        if container.ndim != 1 or container.dtype.kind not in "OUT":  # numpy cuts zeros off the end of bytes, kind S
            raise InvalidInputError(f"{name} is a numpy array {container.dtype!s:.60} {container.shape}. {cure}")
        return list(container.tolist())
    if is_table(container) or is_mapping(container):
        raise InvalidInputError(f"{name} is of type {type_name(container)}, which holds values under names. {cure}")
    if hasattr(type(container), "to_pylist"):  # a column of pyarrow, whose iteration yields scalars of its own
        return list(container.to_pylist())
    if isinstance(container, str | bytes) or not isinstance(container, Iterable):
        raise InvalidInputError(f"{name} is {shown(container)}. {cure}")
    return container


def is_table(value: object) -> bool:
    """Tell whether a value is made of columns, as the tables of pandas, polars and pyarrow are."""
    return hasattr(type(value), "columns")


def is_dataset(value: object) -> bool:
    """Tell whether a value yields rows, each of them a mapping, as those of the library datasets do."""
    return hasattr(type(value), "column_names")


def is_mapping(value: object) -> bool:
    """Tell whether a value has keys; a pandas Series, which has a dtype, is a column all the same."""
    return isinstance(value, Mapping) or (hasattr(type(value), "keys") and not hasattr(type(value), "dtype"))


def is_vectors(value: object) -> TypeGuard[npt.NDArray[Any]]:
    """Tell whether a value is a numpy array of numbers with the dimensions of a vector or of several."""
    return isinstance(value, np.ndarray) and value.ndim < 3 and value.dtype.kind in "biufc"


def is_missing(value: object) -> bool:
    """Tell whether a value stands for one that is missing: NaN, or NA and NaT of pandas."""
    return (isinstance(value, float | np.floating) and value != value) or type(value).__name__ in MISSING
