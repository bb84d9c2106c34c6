"""What tells of a library that is not installed."""

from __future__ import annotations

import math

import pytest

from vlembed import MissingExtraError
from vlembed._extras import require


def test_a_library_is_imported() -> None:
    assert require("math", "any") is math


def test_a_missing_one_is_named_with_its_cure() -> None:
    with pytest.raises(MissingExtraError, match=r"nowhere_to_be_found is not .*pip install 'vlembed\[index\]'"):
        require("nowhere_to_be_found", "index")
