"""Many items to vectors, with progress on a terminal and a line for every item that cannot be embedded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .._client import EmbeddingClient
from .._exceptions import ItemError
from .._items import reference_in
from .._result import EmbeddedItem, Embeddings, stack
from ._inputs import Command, Entry
from ._root import InputError, print_errors

MIN_SHOWN = 100  # items that are worth a progress bar


def takes_keep_going(command: Command) -> Command:
    """Add the option that goes on without what cannot be embedded."""
    text = "Leave out items that cannot be embedded, and exit with status 3 if there are any."
    option = click.option("--keep-going", is_flag=True, help=text)
    return option(command)


def embed_entries(
    client: EmbeddingClient, entries: Sequence[Entry], options: Mapping[str, Any], *, keep_going: bool = False
) -> tuple[list[Entry], Embeddings]:
    """Return the entries that can be embedded, and their vectors.

    Raises
    ------
    InputError
        Some cannot, and keep_going is not set.
    """
    progress = sys.stderr.isatty() and len(entries) >= MIN_SHOWN
    bad = {} if options["allow_reference_text"] else _references(entries)  # messages by index
    sent = [index for index in range(len(entries)) if index not in bad]
    rows = list[EmbeddedItem]()
    for outcome in client.embed_many(
        [entries[index].item for index in sent],
        on_error="return",
        progress=progress,
        **{**options, "allow_reference_text": True},
    ):
        if isinstance(outcome, ItemError):
            bad[sent[outcome.index]] = outcome.message
        else:
            rows.append(outcome)
    lines = [f"{entries[index].source}: {message}" for index, message in sorted(bad.items())]
    if lines and not keep_going:
        raise InputError(*lines)
    print_errors(lines)
    info = client.info()
    vectors = stack(rows, options.get("dimensions") or info.dimensions, info.fingerprint)
    return [entries[sent[row.index]] for row in rows], vectors


def _references(entries: Sequence[Entry]) -> dict[int, str]:
    """Return what is said of texts that refer to something, by their index; those of --text are meant as they are."""
    messages = {}
    for index, entry in enumerate(entries):
        text = (entry.item.text or "").strip()
        if not entry.is_literal and (what := reference_in(text)):
            messages[index] = (
                f"the text {text[:60]!r} is {what}, whose content may be meant. Give an image as a file; to embed the "
                "string itself, give --allow-reference-text."
            )
    return messages
