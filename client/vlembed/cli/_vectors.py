"""Many items to vectors, with progress on a terminal and a line for every item that cannot be embedded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .._client import EmbeddingClient
from .._exceptions import ItemError
from .._result import EmbeddedItem, Embeddings, stack
from ._inputs import Command, Entry
from ._root import InputError, print_errors

MAX_TOLD = 20  # lines of errors
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
    rows, bad = list[EmbeddedItem](), list[ItemError]()
    for outcome in client.embed_many(
        [entry.item for entry in entries], on_error="return", progress=progress, **options
    ):
        bad.append(outcome) if isinstance(outcome, ItemError) else rows.append(outcome)
    lines = [f"{entries[item.index].source}: {item.message}" for item in bad]
    if len(lines) > MAX_TOLD:
        lines[MAX_TOLD:] = [f"and {len(lines) - MAX_TOLD} more of {len(entries)} items"]
    if lines and not keep_going:
        raise InputError(*lines)
    print_errors(lines)
    info = client.info()
    vectors = stack(rows, options.get("dimensions") or info.dimensions, info.fingerprint)
    return [entries[row.index] for row in rows], vectors
