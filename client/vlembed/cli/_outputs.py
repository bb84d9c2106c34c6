"""Where results go and in which form: a table for people, JSON and arrays for programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from unicodedata import bidirectional, category, east_asian_width

import click
import numpy as np
import numpy.typing as npt

from .._extras import require
from .._files import replacing
from ._inputs import STDIN, Command, Decorator
from ._local_path import LocalPath

BINARY = ("npy", "parquet")
BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # U+202A to 202E, U+2066 to 2069
MAX_CELL = 48  # columns of a table's text
FLOAT32_DIGITS = 9  # that tell every float32 apart


@dataclass(frozen=True)
class Output:
    """A form, and a file or standard output."""

    format: str
    path: Path | None

    def write(self, data: str | bytes) -> None:
        """Write the whole result."""
        data = data if isinstance(data, bytes) else _lines(data)
        if self.path:
            write_file(self.path, data)
        else:
            _write_stdout(data)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that others see whole or, until then, as it was.

    Raises
    ------
    OSError
        Naming the file.
    """
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise _unwritten(repr(str(path)), error) from error


def _write_stdout(data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:  # what is unbuffered, as with PYTHONUNBUFFERED, may take less than all
            view = view[sys.stdout.buffer.write(view) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritten("standard output", error) from error


def _unwritten(name: str, error: OSError) -> OSError:
    return OSError(f"{name} cannot be written ({error.strerror or error}). Free space, give access, or choose another.")


def _lines(text: str) -> bytes:
    return f"{text}\n".encode(errors="backslashreplace") if text else b""


def require_apart(paths: Mapping[str, Path | None]) -> None:
    """Refuse two of a command's files that are one, of which it would overwrite the other."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path and (other := seen.setdefault(path.resolve(), name)) != name:
            raise click.UsageError(f"{other} and {name} are both {str(path)!r}. Name another file for {name}.")


def takes_output(*formats: str, to_file: bool = True) -> Decorator:
    """Add the options of the result; the command gets an `Output` as `output`."""
    text = (
        f"Form of the result. Default:{' that of the suffix of --output;' * to_file} on a terminal a table, else JSON."
    )
    form_option = click.option("--format", "form", type=click.Choice(formats), help=text)
    path_option = click.option(
        "--output",
        "-o",
        "path",
        type=LocalPath(),
        metavar="FILE",
        help="Overwritten if it is there. Default, and -: standard output.",
    )

    def decorate(command: Command) -> Command:
        @wraps(command)
        def wrapped(*args: Any, form: str | None, path: Path | None = None, **kwargs: Any) -> Any:
            return command(*args, output=_choose(form, path, formats), **kwargs)

        return form_option(path_option(wrapped) if to_file else wrapped)

    return decorate


def _choose(form: str | None, path: Path | None, formats: Sequence[str]) -> Output:
    """Check the output before there is anything to lose."""
    is_terminal = sys.stdout.isatty()
    path = None if path == Path(STDIN) else path
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise click.UsageError(f"--output is {str(path)!r}, a folder or in none. Give a file in a folder that exists.")
    if path and not form and path.suffix[1:] not in formats:
        raise click.UsageError(f"--output is {str(path)!r}, of no known suffix. Add --format {'|'.join(formats)}.")
    form = form or (path.suffix[1:] if path else "table" if is_terminal else "json")
    if form in BINARY and not path and is_terminal:
        raise click.UsageError(f"{form} is not for a terminal. Add --output FILE, or redirect standard output.")
    if form == "parquet":
        require("pyarrow.parquet", "bulk")
    return Output(form, path)


def to_json(value: Any) -> str:
    """Return one line of JSON; texts stay readable."""
    return json.dumps(value, ensure_ascii=False)


def to_text(value: Any) -> str:
    """Return a string as it is, and any other value of JSON as JSON."""
    return value if isinstance(value, str) else to_json(value)


def to_floats(values: npt.NDArray[np.floating[Any]]) -> list[Any]:
    """Return (d,) or (n, d) as lists; of float32 with the digits that make the same float32 again."""
    if values.ndim > 1:
        return [to_floats(row) for row in values]
    if values.dtype != np.float32:
        return list(values.tolist())
    return [float(f"{value:.{FLOAT32_DIGITS}g}") for value in values.tolist()]


def to_npy(values: npt.NDArray[Any]) -> bytes:
    """Return the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def to_table(header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Align columns: texts left and shortened, numbers right."""
    body = [[_cell(value) for value in row] for row in rows]
    is_number = [all(not isinstance(value, str) for value, _ in column) for column in zip(*body, strict=True)]
    lines = [list(header), *[[text for _, text in row] for row in body]]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(
            " " * (size - width(text)) + text if right else text + " " * (size - width(text))
            for text, size, right in zip(line, widths, is_number or [False] * len(line), strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def to_pairs(values: Mapping[str, object]) -> str:
    """Return a line for each name and its value, whole."""
    size = max(map(len, values))
    return "\n".join(f"{name:{size}}  {_told(value)}" for name, value in values.items())


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{own} {name}" for name, own in value.items()) or "none"
    return "not checked" if value is None else str(value)


def _cell(value: str | float) -> tuple[str | float, str]:
    if isinstance(value, str):
        return value, shorten(value)
    return value, f"{value:.4f}" if isinstance(value, float) else str(value)


def shorten(text: str, max_width: int = MAX_CELL) -> str:
    """Return a text on one line, without what a terminal would obey, cut to a width."""
    text = without_controls(" ".join(text.split()))
    if width(text) <= max_width:
        return text
    while width(text) >= max_width:
        text = text[:-1]
    return f"{text}…"


def without_controls(text: str) -> str:
    """Leave out what a terminal would obey, or what would turn the text around it; white space stays."""
    return "".join(
        char
        for char in text
        if char.isspace() or (category(char) not in ("Cc", "Cs") and bidirectional(char) not in BIDI_CONTROLS)
    )


def width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return sum(0 if category(char) in ("Mn", "Me", "Cf") else 1 + (east_asian_width(char) in "WF") for char in text)
