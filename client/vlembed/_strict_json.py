"""JSON of others, read strictly: what Python would accept and change without a word is an error."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn


def parse_json(text: str) -> Any:
    """Return what a text of JSON says.

    Raises
    ------
    ValueError
        It is no JSON, or has a name twice in an object, NaN, or a number beyond all floats.
    RecursionError
        It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has {twice[:60]!r} twice")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON; write null or a string")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:60]} is beyond all floats; write a string")
    return value
