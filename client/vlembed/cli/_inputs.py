"""The items of a command: arguments, files by path or glob, and standard input.

An argument is never guessed silently: what looks like a file and is none is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

from .._items import DATA_URI, IMAGE_PATH, URL, Item
from .._paths import is_url
from .._strict_json import parse_json
from .._walk import expand
from ..bulk._rows import item_metadata
from ._root import InputError

STDIN = "-"
TEXT_OR_IMAGE = (
    "Give a text that looks like the name of a file with --text, an image that does not with --image, and the lines of "
    "a file as standard input."
)
MAX_URI_LETTERS = 30  # of a data: URI that is told to people
MAX_ID_LETTERS = 120  # of an id that is made of a text; every index holds one of this length
Command: TypeAlias = Callable[..., Any]
Decorator: TypeAlias = Callable[[Command], Command]


@dataclass(frozen=True)
class Entry:
    """An item, and where it comes from."""

    source: str  # for messages
    item: Item
    image: str = ""  # its path or data: URI, as it was given
    given_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)  # all others of its JSON line
    is_literal: bool = False  # its text is one, whatever it looks like

    @property
    def id(self) -> str:
        """Return the id that was given, or else the path of the image, or else the text, if long shortened."""
        if self.given_id:
            return self.given_id
        name = self.image or " ".join((self.item.text or "").split())
        if len(name) <= MAX_ID_LETTERS:
            return name
        digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()
        return f"{name[:MAX_ID_LETTERS]}…{digest[:16]}"

    @property
    def label(self) -> str:
        """Return what people know it by."""
        image = f"{self.image[:MAX_URI_LETTERS]}…" if DATA_URI.fullmatch(self.image) else self.image
        return " ".join(filter(None, [image, self.item.text]))

    @property
    def metadata(self) -> dict[str, Any]:
        """Return what an index keeps of it; images stay in their files, and those of data: URIs are not kept."""
        return item_metadata(self.item.text, "" if DATA_URI.fullmatch(self.image) else self.image, self.fields)

    def described(self) -> dict[str, Any]:
        """Return what is known of it without its vector."""
        content = {"text": self.item.text, "image": self.image or None}
        return {"id": self.id, **{name: value for name, value in content.items() if value is not None}}


def complete_file(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete names of files."""
    return [CompletionItem(incomplete, type="file")]


def takes_items(command: Command) -> Command:
    """Add the arguments that name items; the command gets them as `entries`."""

    @click.argument("items", nargs=-1, metavar="[ITEM]...", shell_complete=complete_file)
    @click.option("--text", "texts", multiple=True, metavar="TEXT", help="A text, whatever it looks like. Repeatable.")
    @click.option(
        "--image",
        "images",
        multiple=True,
        metavar="PATTERN",
        shell_complete=complete_file,
        help="An image file, or a glob in quotes (** crosses folders, and no links to folders), whatever its suffix. "
        "Repeatable.",
    )
    @takes_input_format
    @wraps(command)
    def wrapped(
        *args: Any, items: Sequence[str], texts: Sequence[str], images: Sequence[str], input_format: str, **kwargs: Any
    ) -> Any:
        given = [*items, *texts, *images]
        if not given and sys.stdin.isatty():
            raise click.UsageError("No items. Give texts or images, or pipe lines of text in.")
        entries = [
            *(entry for item in (items if given else [STDIN]) for entry in read_argument(item, input_format)),
            *(Entry(f"--text {text[:60]!r}", Item(text=text), is_literal=True) for text in texts),
            *(entry for pattern in images for entry in find_images(pattern)),
        ]
        return command(*args, entries=entries, **kwargs)

    return wrapped


def takes_input_format(command: Command) -> Command:
    """Add the option that says what standard input holds."""
    option: Decorator = click.option(
        "--input-format",
        type=click.Choice(["text", "jsonl"]),
        default="text",
        show_default=True,
        help='What standard input holds: a text a line, or a JSON object a line with "text", "image" (a path or a '
        'data: URI), "id" and "instruction", as far as it has them.',
    )
    return option(command)


def read_argument(argument: str, input_format: str, cure: str = TEXT_OR_IMAGE) -> list[Entry]:
    """Return the items that an argument names; `cure` tells how to give one that is taken for another.

    Raises
    ------
    InputError
        It names an image that is not there, or a file that is not called an image, or standard input is empty.
    """
    if argument == STDIN:
        entries = list(read_stdin(input_format))
        if not entries:
            raise InputError("standard input has no items, or none any more. Pipe in one a line, and give - once.")
        return entries
    if URL.fullmatch(argument) or DATA_URI.fullmatch(argument):
        return [Entry(f"argument {argument[:60]!r}", Item(text=argument))]  # the client says what may be meant
    if is_named_as_image(argument):
        return find_images(argument, cure)
    if os.path.exists(argument):  # noqa: PTH110 (Path.exists raises of a long text)
        raise InputError(f"{argument!r} is there as a file or a folder, and may be meant as a text. {cure}")
    if "*" in argument and not re.search(r"\s", argument):
        raise InputError(f"{argument!r} may be a glob of files or a text. {cure}")
    return [Entry(f"argument {argument[:60]!r}", Item(text=argument))]


def is_named_as_image(name: str) -> bool:
    """Tell whether a name ends as an image file does; spaces in it do not matter."""
    return bool(IMAGE_PATH.fullmatch(f"x{Path(name).suffix}"))


def find_images(pattern: str, cure: str = "") -> list[Entry]:
    """Return the files of a path or glob, sorted.

    Raises
    ------
    InputError
        There is none, it is a URL, or one has a name that is not UTF-8.
    """
    if is_url(pattern):
        raise InputError(f"{pattern[:60]!r} is a URL, and nothing is fetched. Download it, and give its path. {cure}")
    left_out = Counter[str]()
    paths = [pattern] if os.path.isfile(pattern) else expand(pattern, left_out)  # noqa: PTH113 (as above)
    told = ", ".join(f"{count} {what}" for what, count in (+left_out).items())
    if not paths:
        but = f", but {told}" if told else ""
        raise InputError(
            f"{pattern[:60]!r} matches no file in {str(Path.cwd())!r}{but}. Give the path of an image file, or a glob "
            f"in quotes. {cure}"
        )
    if told:
        click.echo(f"note: {told} left out of {pattern[:60]!r}", err=True)
    for path in paths:
        if path != path.encode(errors="replace").decode():
            raise InputError(f"the name of {path!r} is not UTF-8, and cannot be told in a result. Rename the file.")
    return [Entry(repr(path), Item(image=Path(path)), image=path) for path in paths]


def read_stdin(input_format: str) -> Iterator[Entry]:
    """Yield an item for each line of standard input.

    Raises
    ------
    InputError
        A line is empty, no UTF-8, or no JSON object of an item.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        source = f"line {number} of standard input"
        try:
            text = line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not UTF-8 ({error}). Convert it, for example with iconv.") from error
        if not text.strip():
            raise InputError(f'{source} is empty. Remove it; an empty text is {{"text": ""}} in --input-format jsonl.')
        if "\0" in text:
            raise InputError(f"{source} has a NUL byte, as UTF-16 has. Convert it, for example with iconv.")
        yield Entry(source, Item(text=text)) if input_format == "text" else _read_object(source, text)


def _read_object(source: str, line: str) -> Entry:
    try:
        fields = parse_json(line)
        json.dumps(fields, ensure_ascii=False).encode()  # no half of a character
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is no JSON ({error}): {line[:60]!r}. Give an object a line.") from error
    if not isinstance(fields, dict) or not fields.keys() & {"text", "image"}:
        raise InputError(f"{source} is no object with a text or an image: {line[:60]!r}.")
    own = {name: fields.pop(name, None) for name in ("text", "image", "instruction", "id")}
    for name, value in own.items():
        if not isinstance(value, str | None) and not (name == "id" and type(value) is int):
            raise InputError(f"{source}: {name} is {json.dumps(value)[:60]}. Give a string, or leave it out.")
    text, image, instruction, given_id = own.values()
    if image and is_url(image):
        raise InputError(f"{source}: the image {image[:60]!r} is a URL, and nothing is fetched. Download it.")
    picture = (image.encode() if DATA_URI.fullmatch(image) else Path(image)) if image else None
    given_id = "" if given_id is None else str(given_id)
    return Entry(source, Item(text, picture, instruction), image=image or "", given_id=given_id, fields=fields)


def refuse_metadata(entries: Sequence[Entry]) -> None:
    """Refuse fields that a command has no use for, instead of dropping them."""
    for entry in entries:
        if entry.fields:
            raise InputError(
                f"{entry.source} has {', '.join(map(repr, entry.fields))}, which only `vlembed index` keeps. Remove "
                "it, or check its spelling: text, image, id, instruction."
            )
