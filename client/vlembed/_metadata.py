"""Metadata of rows: what callers bring, as one line of JSON, exactly or not at all.

Dates and times become ISO 8601, whose order as texts is theirs; NumPy's scalars and arrays become numbers and lists.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np

from ._checks import shown, type_name
from ._exceptions import InvalidInputError

RULE = "Metadata are str, int, float, bool, None, dates, and lists and dicts of them, in a dict with str as keys."
MISSING = "What is missing is None"
TO_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
EPOCH = datetime.datetime(1970, 1, 1)


def encode_metadata(metadata: Mapping[str, Any] | None) -> str:
    """Return metadata as one line of JSON, "" if there is none.

    Raises
    ------
    InvalidInputError
        It is no object, or a field is of a type that JSON has not; naming the field.
    """
    if metadata is None:
        return ""
    if not isinstance(metadata, Mapping):
        cure = "Pass its to_dict(). " if hasattr(metadata, "to_dict") else ""  # as a Series of pandas has
        raise InvalidInputError(f"it is of type {type_name(metadata)}. {cure}{RULE}")
    fields = [_encode_field(name, value) for name, value in metadata.items()]
    return f"{{{','.join(fields)}}}" if fields else ""


def decode_metadata(text: str) -> dict[str, Any]:
    """Return what `encode_metadata` made a text of."""
    decoded: dict[str, Any] = json.loads(text) if text else {}
    return decoded


def _encode_field(name: Any, value: Any) -> str:
    try:
        text = f"{TO_JSON(_key(name))}:{TO_JSON(to_json_value(value))}"
        text.encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidInputError(f"the field {shown(name)} is no metadata: {reason}. {RULE}") from error
    return text


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"its name is of type {type_name(name)}")
    return str.__str__(name)


def to_json_value(value: Any) -> Any:
    """Return a value as JSON has it: None, a bool, int, float or str, or lists and dicts of them.

    Raises
    ------
    ValueError
        It has no exact form there.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, Enum):
        return to_json_value(value.value)
    if isinstance(value, float):
        return _finite(float(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)  # not that of a subclass
    if isinstance(value, Mapping):
        return {_key(name): to_json_value(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(own) for own in value]
    if isinstance(value, datetime.date | datetime.time):
        if value != value:  # pandas' NaT is a datetime
            raise ValueError(f"{value!r} is no date. {MISSING}")
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return _of_numpy(value)
    raise ValueError(f"{shown(value)} is of type {type_name(value)}")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON. {MISSING}")
    return value


def _of_numpy(value: np.generic | np.ndarray[Any, Any]) -> Any:
    kind, size_bytes = value.dtype.kind, value.dtype.itemsize
    if kind not in "biufUOM" or (kind == "f" and size_bytes > 8) or isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{shown(value)} is of type {type_name(value)}, {value.dtype}")
    if isinstance(value, np.datetime64):
        return _datetime64(value)
    if isinstance(value, np.generic):
        return to_json_value(value.item())
    return [to_json_value(own) for own in value] if value.ndim else to_json_value(value[()])


def _datetime64(value: np.datetime64) -> str:
    if np.isnat(value):
        raise ValueError(f"{value!r} is no date. {MISSING}")
    python = value.item()  # a date or a datetime, or an int where those are too coarse or too short
    if isinstance(python, datetime.date):
        return python.isoformat()
    if np.datetime_data(value.dtype) != ("ns", 1):
        raise ValueError(f"{value!r} is no date of Python, nor one in nanoseconds")
    microseconds, nanoseconds = divmod(python, 1000)
    return iso_datetime(EPOCH + datetime.timedelta(microseconds=microseconds), nanoseconds)


def iso_datetime(value: datetime.datetime | datetime.time, nanoseconds: int) -> str:
    """Return a time in ISO 8601, with the nanoseconds that Python's own types lack if there are any."""
    if not nanoseconds:
        return value.isoformat()
    text = value.isoformat(timespec="microseconds")
    end = text.index(".") + 7
    return f"{text[:end]}{nanoseconds:03}{text[end:]}"


def iso_duration(nanoseconds: int) -> str:
    """Return a duration in ISO 8601, in seconds: PT90S, -PT0.5S."""
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0").rstrip(".")
    return f"{'-' * (nanoseconds < 0)}PT{seconds}{fraction}S"
