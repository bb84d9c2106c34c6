"""The launcher's log: a line for each start, stop and fault, and the lines of tritonserver among them."""

from __future__ import annotations

import json
import re
import threading
from contextlib import suppress
from datetime import datetime, timezone
from typing import Protocol

LEVEL = re.compile(r"([IWE])\d{4} |([we])(?:arning|rror): ")  # how tritonserver begins a line
LEVELS = {"I": "info", "W": "warning", "E": "error"}


class Writable(Protocol):
    """Where lines go: a file, or an `EventLog`."""

    def write(self, text: str, /) -> object:
        """Take a text."""

    def flush(self) -> object:
        """Pass on what was taken."""


class EventLog:
    """Write events and the lines of other programs to one stream, as text or as JSON.

    Parameters
    ----------
    stream
        Where to. If its reader has gone, what is written is lost, and nothing fails.
    as_json
        Whether each line is an object with `time`, `level` and `event`; that of a line of tritonserver is `triton`.
    """

    def __init__(self, stream: Writable, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self._lock = threading.Lock()

    def event(self, name: str, *, level: str = "info", **facts: object) -> None:
        """Write what happened, and the facts of it."""
        if self._as_json:
            self._write_object(name, level, facts)
        else:
            described = ", ".join(f"{key} {value}" for key, value in facts.items())
            self._put(f"{_now()} {name}{': ' if facts else ''}{described}\n")

    def error(self, message: str) -> None:
        """Write a sentence for the user."""
        if self._as_json:
            self._write_object("error", "error", {"message": message})
        else:
            self._put(f"error: {message}\n")

    def write(self, text: str, /) -> None:
        """Write a line of tritonserver; it ends with its newline."""
        if not self._as_json:
            self._put(text)
        elif line := text.rstrip("\n"):
            match = LEVEL.match(line)
            letter = (match[1] or match[2]).upper() if match else "I"
            self._write_object("triton", LEVELS[letter], {"message": line})

    def flush(self) -> None:
        """Do nothing: every line is passed on as it comes."""

    def _write_object(self, name: str, level: str, facts: dict[str, object]) -> None:
        described = {"time": _now(), "level": level, "event": name} | facts
        self._put(json.dumps(described, ensure_ascii=False, default=str) + "\n")

    def _put(self, line: str) -> None:
        with self._lock, suppress(OSError, ValueError):  # a pipe that nobody reads, or a closed file
            self._stream.write(line)
            self._stream.flush()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
