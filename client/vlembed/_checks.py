"""Checks of arguments that are whole numbers, numbers, seconds, flags or mappings, and of the values that errors quote.

Each check returns the value as a plain Python object, so numpy's numbers are welcome everywhere. A bool is no number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

from ._exceptions import InvalidInputError

T = TypeVar("T")

MAX_SECONDS = 86_400  # a day: sockets take some weeks at most, and nobody waits that long
MAX_SHOWN_LETTERS = 80  # of a value in a message, which must not grow with the input


def shown(value: object) -> str:
    """Return the repr of a value, cut to what a message can hold; its type if it has none."""
    try:
        text = repr(value)
    except Exception:  # whole numbers of thousands of digits have none, and classes of users may raise anything
        return f"of type {type_name(value)}"
    return text if len(text) <= MAX_SHOWN_LETTERS else f"{text[:MAX_SHOWN_LETTERS]}..."


def type_name(value: object) -> str:
    """Return the full name of a value's type."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def whole_number(name: str, value: Any, least: int, most: int | None = None, *, taker: str = "", cure: str = "") -> int:
    """Return a whole number within its bounds.

    Parameters
    ----------
    name
        Of the argument.
    value
        int or numpy integer.
    least, most
        Inclusive; None sets no bound.
    taker
        Who sets the bounds, for the message.
    cure
        A sentence that ends the message.

    Raises
    ------
    InvalidInputError
        With the value and the rule.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        rule = f"; {taker} takes {bounds}." if taker else f". Pass a whole number, {bounds}."
        raise InvalidInputError(f"{name} is {shown(value)}{rule}{cure and f' {cure}'}")
    return int(value)


def number(name: str, value: Any, least: float, most: float) -> float:
    """Return a number from `least` to `most`; errors as of `whole_number`."""
    if not _is_number(value) or not least <= value <= most:
        raise InvalidInputError(f"{name} is {shown(value)}. Pass a number, {least:g} to {most:g}.")
    return float(value)


def seconds(name: str, value: Any, *, may_be_zero: bool = False) -> float:
    """Return seconds above 0, or from 0 if that is allowed, up to a day; errors as of `whole_number`."""
    if not _is_number(value) or not 0 <= value <= MAX_SECONDS or (value == 0 and not may_be_zero):
        bounds = "from 0" if may_be_zero else "above 0"
        raise InvalidInputError(f"{name} is {shown(value)}. Pass seconds {bounds}, up to {MAX_SECONDS} (a day).")
    return float(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse what is none of some strings; errors as of `whole_number`."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(f"{name} is {shown(value)}. Pass one of {', '.join(map(repr, choices))}.")


def flag(name: str, value: Any) -> bool:
    """Return True or False; errors as of `whole_number`."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidInputError(f"{name} is {shown(value)}. Pass True or False.")
    return bool(value)


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Return a mapping from str as a dict; errors as of `whole_number`, but without the value, which may be secret."""
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} is of type {type_name(value)}. Pass a mapping, for example a dict.")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise InvalidInputError(f"{name} has the key {shown(wrong[0])}. Pass keys of type str.")
    return dict(value)


def instance(name: str, value: Any, expected: type[T]) -> T:
    """Return an instance of a class; errors as of `whole_number`."""
    if not isinstance(value, expected):
        raise InvalidInputError(f"{name} is {shown(value)}. Pass a {expected.__name__}.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
