"""What a server keeps outside of its processes: shared memory and a folder. Nothing of it stays, whoever is killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

SHARED_MEMORY = Path("/dev/shm")
LOCK_SUFFIX = "_lock"


@dataclass(frozen=True)
class Belongings:
    """What is a server's by its name."""

    name: str

    @property
    def region_prefix(self) -> str:
        """Return how the names of its shared memory begin."""
        return f"{self.name}_"

    @property
    def folder(self) -> Path:
        """Return a folder that it may make."""
        return Path(tempfile.gettempdir()) / f"{self.name}-backends"

    def remove(self) -> None:
        """Remove all that there is."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for region in SHARED_MEMORY.glob(f"{self.region_prefix}*"):
            region.unlink(missing_ok=True)


@contextmanager
def keep_belongings() -> Iterator[Belongings]:
    """Give a server's belongings for as long as a `with` block lasts, and remove them then.

    A lock says that they are in use; the kernel takes it back from a process that was killed, and then the next server
    that starts here removes them.
    """
    _remove_orphans()
    ours = Belongings(f"vlembed_{uuid4().hex[:12]}")
    lock = SHARED_MEMORY / f"{ours.name}{LOCK_SUFFIX}"
    unlocked = lock.with_suffix(".new")  # which nobody takes for an orphan
    with unlocked.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unlocked.rename(lock)
        try:
            yield ours
        finally:
            ours.remove()  # and the lock


def _remove_orphans() -> None:
    for lock in SHARED_MEMORY.glob(f"vlembed_*{LOCK_SUFFIX}"):
        with suppress(OSError), lock.open() as file:  # in use, another user's, or just gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Belongings(lock.name.removesuffix(LOCK_SUFFIX)).remove()
