"""Conditions on metadata as people write them, to the filter of `Index.search`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import click

CONDITION = re.compile(r"(?P<field>.+?)(?P<operator>!=|<=|>=|==|=|<|>)(?P<value>.*)", re.DOTALL)


def parse_conditions(conditions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a filter that asks for all conditions.

    Parameters
    ----------
    conditions
        FIELD=VALUE, or with another operator. A value is JSON, or else a string; `=` with a list asks for one of it.

    Raises
    ------
    click.UsageError
        One has no operator, or two are of the same field and operator.
    """
    where: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        parts = CONDITION.fullmatch(condition)
        if not parts:
            raise click.UsageError(f"--where is {condition!r}. Give FIELD=VALUE, or with one of !=, <, <=, >, >=.")
        value = _value(condition, parts["value"].strip())
        relation = "==" if parts["operator"] == "=" else parts["operator"]
        if relation == "==" and isinstance(value, list):
            relation = "in"
        relations = where.setdefault(parts["field"].strip(), {})
        if relation in relations:
            raise click.UsageError(
                f"--where {condition!r} is the second of that field and operator, and all have to hold. For one of two "
                'values give FIELD=["a", "b"].'
            )
        relations[relation] = value
    return where


def _value(condition: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise click.UsageError(f"--where {condition[:60]!r} is nested too deeply. Give a value, or a list.") from error
    except ValueError:
        if text.startswith(("=", "<", ">", "~")):
            raise click.UsageError(
                f"--where {condition!r} has no known operator. Give one of =, !=, <, <=, >, >=; or if the value "
                f"begins with {text[0]}, quote it: {json.dumps(text, ensure_ascii=False)}."
            ) from None
        return text
