"""Paths of files on this machine, told apart from URLs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ._checks import shown
from ._exceptions import InvalidInputError

SCHEME = re.compile(r"\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")  # one slash: Path makes one of two


def is_url(path: str | Path) -> bool:
    """Tell whether a path begins with a scheme, as in s3://bucket/key, also after `Path` has removed a slash."""
    return SCHEME.match(str(path)) is not None


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file or folder of this machine.

    Parameters
    ----------
    path
        As a caller gave it.
    name
        What it is of, for the message.

    Raises
    ------
    InvalidInputError
        It is a URL, which would become a folder of that name here; or no path at all.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise InvalidInputError(f"{name} is {shown(path)}, which is no path. Pass a str or a Path.")
    if parts := SCHEME.match(text):
        cure = "Mount that storage, or copy from or to it with its own tools, and pass a path."
        if parts["scheme"].lower() == "file":
            cure = "Pass its path without the scheme."
        raise InvalidInputError(
            f"{name} is {shown(text)}, a URL; vlembed reads and writes files of this machine. {cure}"
        )
    return Path(text)
