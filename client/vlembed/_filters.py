"""The conditions of a filter on metadata; knows nothing of how a store finds the rows that meet them.

A condition compares a value of metadata with one of the same type: string, number or boolean.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from ._checks import shown
from ._exceptions import InvalidInputError
from ._metadata import to_json_value

Where: TypeAlias = Mapping[str, Any]

TYPES = {str: "string", int: "number", float: "number", bool: "boolean"}
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
MAX_INTEGER = 2**63 - 1  # what every store can hold
RULE = 'Pass for example {"language": "de", "year": {">=": 2020}, "kind": {"in": ["a", "b"]}}.'


@dataclass(frozen=True)
class Condition:
    """What the value of a field has to be: in relation `operator` to one of `values` at least."""

    field: str
    operator: str
    values: tuple[Any, ...]

    @cached_property
    def _typed_values(self) -> frozenset[tuple[str, Any]]:
        return frozenset((type_of(value), value) for value in self.values)

    def is_met(self, value: Any) -> bool:
        """Tell whether a value of JSON meets it: never one of another type than the condition's, `!=` included."""
        of_type = type_of(value)
        if of_type == "other":
            return False
        if self.operator == "==":
            return (of_type, value) in self._typed_values
        compare = OPERATORS[self.operator]
        return any(of_type == type_of(own) and compare(value, own) for own in self.values)


def type_of(value: Any) -> str:
    """Name the type of a value of JSON, "other" if it cannot be compared."""
    return TYPES.get(type(value), "other")


def parse_where(where: Where | None) -> tuple[Condition, ...]:
    """Check a filter and return its conditions, which have to be met together.

    Raises
    ------
    InvalidInputError
        Naming the field, the operator or the value that is wrong.
    """
    if where is None:
        return ()
    if not isinstance(where, Mapping):
        raise InvalidInputError(f"where is {shown(where)}. {RULE}")
    return tuple(
        _condition(field, relation, value)
        for field, relations in where.items()
        for relation, value in (relations.items() if isinstance(relations, Mapping) else [("==", relations)])
    )


def _condition(field: Any, relation: Any, value: Any) -> Condition:
    if not isinstance(field, str) or not is_plain(field):
        raise InvalidInputError(f"where has the field {shown(field)}; one is a str without control characters. {RULE}")
    if relation != "in" and relation not in OPERATORS:
        raise InvalidInputError(
            f"where has the operator {shown(relation)} for {shown(field)}. Use one of {', '.join(OPERATORS)} and in. "
            + RULE
        )
    if relation == "in" and not isinstance(value, list | tuple | set | frozenset):
        raise InvalidInputError(f"where has {shown(value)} for {shown(field)} to be in. Pass a list. {RULE}")
    values = tuple(_comparable(field, own) for own in (value if relation == "in" else [value]))
    if relation not in ("==", "!=", "in") and type_of(values[0]) == "boolean":
        raise InvalidInputError(f"where orders {shown(field)} by {shown(values[0])}. Compare a boolean with == or !=.")
    return Condition(field, "==" if relation == "in" else relation, values)


def _comparable(field: str, value: Any) -> Any:
    with suppress(ValueError, RecursionError):
        value = to_json_value(value)  # as metadata are
    of_type = type_of(value)
    is_fit = of_type == "boolean"
    if of_type == "string":
        is_fit = is_plain(value)
    if of_type == "number":
        is_fit = -MAX_INTEGER <= value <= MAX_INTEGER  # not nan
    if not is_fit:
        raise InvalidInputError(
            f"where compares {shown(field)} with {shown(value)}. Pass a str without control characters, a finite "
            f"number within 64 bits, a bool, or a date. {RULE}"
        )
    return value


def is_plain(text: str) -> bool:
    """Tell whether a text has no control character and no lone surrogate, so that every store can hold and find it."""
    return NOT_PLAIN.search(text) is None
