"""Libraries that only some features need, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._exceptions import MissingExtraError


def require(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises
    ------
    MissingExtraError
        It is not installed, or does not fit what is; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({error}). Install it with: pip install 'vlembed[{extra}]'"
        ) from error
