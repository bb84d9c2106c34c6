"""What a forked child makes anew.

A child shares its parent's sockets, and inherits locks held by threads that it does not have. So whatever has
connections, locks or threads lets go of them in the child, before anything else runs there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeAlias

Callback: TypeAlias = Callable[[], None]

_callbacks: set[weakref.ref[Callback]] = set()
_inherited: list[Any] = []


def call_after_fork(callback: Callback) -> None:
    """Have a function called in every forked child; a method, as long as its object lives.

    It puts new things in the place of old ones, and neither waits, closes nor raises.
    """
    reference = weakref.WeakMethod if isinstance(callback, MethodType) else weakref.ref
    _callbacks.add(reference(callback, _callbacks.discard))


def keep(inherited: Any) -> None:
    """Keep what a child has inherited from being collected, which would close connections that are its parent's."""
    _inherited.append(inherited)


def _call_all() -> None:
    for callback in [living for reference in tuple(_callbacks) if (living := reference())]:
        callback()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_call_all)
