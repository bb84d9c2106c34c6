"""Files that others see whole, or until then as they were."""

from __future__ import annotations

import os
from pathlib import Path


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
