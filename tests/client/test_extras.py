"""What tells of a library that is not installed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vlembed import MissingExtraError
from vlembed._extras import require


def test_a_library_is_imported() -> None:
    assert require("math", "any") is math


def test_a_missing_one_is_named_with_its_cure() -> None:
    with pytest.raises(MissingExtraError, match=r"nowhere_to_be_found cannot .*pip install 'vlembed\[index\]'"):
        require("nowhere_to_be_found", "index")


def test_one_that_does_not_fit_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unfitting.py").write_text("raise ImportError('needs numpy 2')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"unfitting .*needs numpy 2"):
        require("unfitting", "bulk")
