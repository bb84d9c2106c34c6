"""What a forked child makes anew.

A child shares its parent's sockets, and inherits locks held by threads that it does not have. So whatever has
connections, locks or threads lets go of them in the child, before anything else runs there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_methods: set[weakref.WeakMethod[Callable[[], None]]] = set()
_inherited: list[Any] = []


def call_after_fork(method: Callable[[], None]) -> None:
    """Have a method called in every forked child, as long as its object lives.

    Parameters
    ----------
    method
        Bound. It puts new things in the place of old ones, and neither waits, closes nor raises.
    """
    _methods.add(weakref.WeakMethod(method, _methods.discard))


def keep(inherited: Any) -> None:
    """Keep what a child has inherited from being collected, which would close connections that are its parent's."""
    _inherited.append(inherited)


def _call_all() -> None:
    for method in [living for reference in tuple(_methods) if (living := reference())]:
        method()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_call_all)
