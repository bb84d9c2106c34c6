"""Processes that should live: the kernel tells at once when one of them ends, whoever's child it is."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Watch:
    """Wait for the end of any of some processes.

    Parameters
    ----------
    pids
        Of processes that lived a moment ago.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._handles: dict[int, int] = {}  # by file descriptor
        self._ended: set[int] = set()
        for pid in pids:
            try:
                self._handles[os.pidfd_open(pid)] = pid
            except ProcessLookupError:
                self._ended.add(pid)

    def ended(self, timeout_s: float | None) -> set[int]:
        """Return which have ended, waiting for the first one; empty when none did in time."""
        poll = select.poll()
        for handle in self._handles:
            poll.register(handle, select.POLLIN)
        timeout_ms = 0 if self._ended else None if timeout_s is None else 1000 * timeout_s
        return self._ended | {self._handles[handle] for handle, _ in poll.poll(timeout_ms)}

    def close(self) -> None:
        """Stop watching."""
        while self._handles:
            os.close(self._handles.popitem()[0])


def group_members(group: int) -> set[int]:
    """Return the living processes of a process group."""
    members = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                members.add(int(path.parent.name))
    return members
