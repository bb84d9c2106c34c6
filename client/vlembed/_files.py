"""Files that others see whole, or until then as they were."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp"  # suffix of what a killed process leaves behind


def place(temporary: Path, path: Path) -> None:
    """Give a file its name, in its own folder, once its bytes are on the disk; then have the name there, too."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield the path of a hidden file to write, and remove it unless it was placed."""
    path = folder / f".{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside the path that takes its place, and its mode, once it is written and on the disk.

    What a link leads to is replaced, not the link. A device or a pipe is written as it is. An OSError names the path.
    """
    given, path = path, path.resolve()
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with path.open("wb") as file:
            yield file
        return
    try:
        with temporary_file(path.parent) as temporary:
            with temporary.open("xb") as file:
                yield file
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            place(temporary, path)
    except OSError as error:
        if error.filename is None:
            error.filename = str(given)
        raise
