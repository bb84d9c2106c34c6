"""Which files a folder or a pattern stands for: one rule, wherever folders are searched.

Side files, which file systems and viewers keep beside others, are left out. A link to a folder is not entered. A link
to a file is left out if that file is found under its own name, or by an earlier link. All that is left out is counted.
What is named as it is, without wildcards, is followed and never left out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

Ignored: TypeAlias = Counter[str]

SIDE_FILES, FOLDER_LINKS, REPEATED_FILES = "side files", "links to folders", "links to files that are there"
SIDE_NAMES = {  # and hidden ones
    *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"),  # of macOS, Synology, Windows and Linux
    "_temporary",  # of Spark
    *("Thumbs.db", "desktop.ini"),
}
HIDDEN = (".", "~$")  # how names begin; the latter of files that Office has open
WILDCARD = re.compile(r"[*?[]")


def is_side_name(name: str) -> bool:
    """Tell whether a file of this name, or all in a folder of this name, are side files."""
    return name in SIDE_NAMES or (name.startswith(HIDDEN) and name not in (".", ".."))


def is_side_path(path: str) -> bool:
    """Tell whether one of the names in a relative path makes it a side file."""
    return any(map(is_side_name, path.split("/")))


class Links:
    """Tells which links lead to files that are found without them."""

    def __init__(self, is_found: Callable[[Path], bool]) -> None:
        self._is_found = is_found  # the real path of a file
        self._seen = set[Path]()

    def is_repeated(self, path: Path) -> bool:
        """Tell whether a path is a link to a file that is found under its own name, or was by an earlier link."""
        if not path.is_symlink():
            return False
        target = path.resolve()
        if self._is_found(target) or target in self._seen:
            return True
        self._seen.add(target)
        return False


def walk(folder: Path, ignored: Ignored, onerror: Callable[[OSError], object]) -> Iterator[Path]:
    """Yield the files in a folder and below that are no side files, sorted, and count the others.

    Parameters
    ----------
    folder
        Entered even if it is a link or has the name of side files.
    ignored
        Counts what is left out.
    onerror
        Called if a folder cannot be read.
    """

    def is_side(path: str | Path) -> bool:
        return is_side_path(os.path.relpath(path, folder))

    def refuse(error: OSError) -> None:
        if is_side(error.filename):
            ignored[SIDE_FILES] += 1
        else:
            onerror(error)

    for name, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        if is_side(name):
            ignored[SIDE_FILES] += len(names)
            continue
        ignored[FOLDER_LINKS] += sum(Path(name, own).is_symlink() for own in folders)
        for own in sorted(names):
            if is_side_name(own):
                ignored[SIDE_FILES] += 1
            else:
                yield Path(name, own)


def expand(pattern: str, ignored: Ignored) -> list[str]:
    """Return the files that a pattern with wildcards matches, sorted; `**` stands for folders at any depth."""
    names = pattern.split("/")
    first = next((index for index, name in enumerate(names) if WILDCARD.search(name)), len(names))
    parts = [name for name in names[first:] if name]
    if parts[-1:] == ["**"]:
        parts.append("*")
    left_out: dict[str, str] = {}  # why, by their paths
    paths = sorted(set(_matches("".join(f"{name}/" for name in names[:first]), parts, left_out))) if parts else []
    found = {os.path.realpath(path) for path in paths if not Path(path).is_symlink()}
    links = Links(lambda target: str(target) in found)
    kept = [path for path in paths if not links.is_repeated(Path(path))]
    ignored.update(left_out.values())
    ignored[REPEATED_FILES] += len(paths) - len(kept)
    return kept


def _matches(start: str, parts: Sequence[str], left_out: dict[str, str], *, is_side: bool = False) -> Iterator[str]:
    """Yield the files below a path, empty or with a slash at its end, that match the parts of a pattern."""
    part, *rest = parts
    if part == "**":
        yield from _matches(start, rest, left_out, is_side=is_side)
    for entry in _entries(start, part, is_side=is_side):
        path = f"{start}{entry.name}"
        is_named = not WILDCARD.search(part)
        is_side_here = is_side or (is_side_name(entry.name) and not (is_named or part.startswith(HIDDEN)))
        if (rest or part == "**") and entry.is_dir():
            if is_named or not entry.is_symlink():
                yield from _matches(f"{path}/", parts if part == "**" else rest, left_out, is_side=is_side_here)
            elif not is_side_here:
                left_out[path] = FOLDER_LINKS
        elif not rest and part != "**" and entry.is_file():
            if is_side_here:
                left_out[path] = SIDE_FILES
            else:
                yield path


def _entries(folder: str, part: str, *, is_side: bool) -> list[os.DirEntry[str]]:
    """Return what is in a folder, if it is one, and matches a part of a pattern; a side folder may be closed to us."""
    absent = (OSError,) if is_side else (FileNotFoundError, NotADirectoryError)
    with suppress(*absent), os.scandir(folder or ".") as entries:
        return [entry for entry in entries if part == "**" or fnmatchcase(entry.name, part)]
    return []
