"""Arguments that name files and folders of this machine."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/")


def is_url(path: str | Path) -> bool:
    """Tell whether a path begins with a scheme, as in s3://bucket/key, also after `Path` has removed a slash."""
    return SCHEME.match(str(path)) is not None


def local_path(value: str) -> Path:
    """Parse a path; a URL is refused, which would otherwise become a folder of that name."""
    if is_url(value):
        raise argparse.ArgumentTypeError(
            f"{value[:80]!r} is a URL, and only files of this machine are read and written. Mount that storage, or "
            "copy from or to it with its own tools, and pass a path"
        )
    return Path(value)
