"""The tree of errors."""

from __future__ import annotations

import pickle
import re

import pytest

import vlembed
from vlembed import InvalidInputError, ItemError, VlembedError, _exceptions


def test_the_docstring_shows_the_tree() -> None:
    shown = re.findall(r"[├└]── (\w+)", _exceptions.__doc__ or "")
    assert set(shown) == {kind.__name__ for kind in VlembedError.__subclasses__()}
    assert all(name in vlembed.__all__ for name in ["VlembedError", *shown])


def test_items_are_counted_in_the_message() -> None:
    items = [ItemError(3, "A", "no"), ItemError(5, "B", "never")]
    error = InvalidInputError.of_items(items, 7)
    assert str(error) == "item 3 of 7: no (and 1 more)"
    assert error.items == tuple(items)


@pytest.mark.parametrize("kind", [InvalidInputError, *VlembedError.__subclasses__()])
def test_errors_travel_between_processes(kind: type[VlembedError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("message")))
    assert (type(copy), str(copy)) == (kind, "message")


def test_items_travel_between_processes() -> None:
    error = InvalidInputError.of_items([ItemError(1, "A", "no")], 2)
    assert pickle.loads(pickle.dumps(error)).items == error.items
