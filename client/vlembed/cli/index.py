"""`vlembed index`: make an index of items, add to it, and tell of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .._client import DEFAULT_QUERY_INSTRUCTION, EmbeddingClient
from .._faiss_kinds import KINDS
from .._filters import is_plain
from .._index import Index
from .._result import Embeddings
from ..bulk._output import fill, verify_ids
from ._inputs import Command, Entry, read_stdin, takes_items
from ._local_path import LocalPath
from ._options import EMBED_OPTIONS, ITEM_OPTIONS, takes_client, takes_embed_options
from ._outputs import Output, require_apart, takes_output, to_json, to_pairs
from ._places import Place, takes_place
from ._root import INCOMPLETE, SUBCOMMAND, InputError
from ._vectors import embed_entries, takes_keep_going

KIND_OPTIONS = sorted({name for options in KINDS.values() for name in options})


@click.group(invoke_without_command=True, subcommand_metavar=SUBCOMMAND)
@click.pass_context
def index(context: click.Context) -> None:
    """Make an index of texts and images, add to it, and tell of it.

    \b
    INDEX is a file, or a collection in Milvus:
      photos.index
      milvus+http://host:19530/photos
      milvus+file:milvus.db/photos

    Each item is a row with an id: its own in JSON lines, else the path of its image as it is given, else its text. Its
    metadata is its text, the path of its image, and all other fields of its JSON line; `vlembed search --where` filters
    by them.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def takes_design(command: Command) -> Command:
    """Add the options of a new index; the command gets those that are given as `design`, as for `Index.create`."""

    @click.option("--kind", type=click.Choice(list(KINDS)), help="Default: flat, which compares all; in Milvus hnsw.")
    @click.option(
        "--option",
        "kind_options",
        multiple=True,
        metavar="NAME=NUMBER",
        help="Of the kind, as for Index.create, for example ef_search=256. Repeatable.",
    )
    @click.option(
        "--query-instruction",
        metavar="TEXT",
        help=f"What is to be found, for the queries to come. Default: {DEFAULT_QUERY_INSTRUCTION}",
    )
    @wraps(command)
    def wrapped(
        *args: Any, kind: str | None, kind_options: Sequence[str], query_instruction: str | None, **kwargs: Any
    ) -> Any:
        given = {"kind": kind, "instruction": query_instruction, **dict(map(_split_option, kind_options))}
        design = {name: value for name, value in given.items() if value is not None}
        return command(*args, design=design, **kwargs)

    return wrapped


def _split_option(option: str) -> tuple[str, int]:
    name, _, value = option.partition("=")
    if name not in KIND_OPTIONS or not value.isdecimal():
        raise click.UsageError(f"--option is {option!r}. Give NAME=NUMBER, NAME one of {', '.join(KIND_OPTIONS)}.")
    return name, int(value)


@index.command()
@takes_place
@takes_items
@takes_design
@EMBED_OPTIONS["dimensions"]
@takes_embed_options(*ITEM_OPTIONS)
@takes_keep_going
@takes_client()
def create(
    client: EmbeddingClient,
    place: Place,
    entries: Sequence[Entry],
    design: Mapping[str, Any],
    dimensions: int | None,
    options: Mapping[str, Any],
    keep_going: bool,
) -> int:
    """Make an index of items, which are given as for `vlembed embed`.

    \b
      vlembed index create photos.index 'photos/**/*.jpg' --kind hnsw
      vlembed index create notes.index --input-format jsonl < notes.jsonl
    """
    make = place.prepare(client=client, dimensions=dimensions, **design)
    _check_ids(entries)
    dimensions = dimensions or client.info().dimensions
    kept, embeddings = _embed(client, entries, dimensions, options, keep_going=keep_going)
    with make() as made:
        _put(made.add, kept, embeddings)
        _save(made, place, len(kept))
    return INCOMPLETE if len(kept) < len(entries) else 0


@index.command()
@takes_place
@takes_items
@click.option("--replace", is_flag=True, help="Replace the rows whose ids are there, instead of refusing all.")
@takes_embed_options(*ITEM_OPTIONS)
@takes_keep_going
@takes_client()
def add(
    client: EmbeddingClient,
    place: Place,
    entries: Sequence[Entry],
    replace: bool,
    options: Mapping[str, Any],
    keep_going: bool,
) -> int:
    """Add items to an index, which are given as for `vlembed embed`."""
    with place.open(client) as opened:
        _check_ids(entries, None if replace else opened)
        kept, embeddings = _embed(client, entries, opened.info.dimensions, options, keep_going=keep_going)
        _put(opened.upsert if replace else opened.add, kept, embeddings)
        _save(opened, place, len(kept))
    return INCOMPLETE if len(kept) < len(entries) else 0


def _check_ids(entries: Sequence[Entry], index: Index | None = None) -> None:
    """Refuse ids that no index takes, or that this index has, before anything is embedded."""
    errors, first = [], dict[str, Entry]()
    for entry in entries:
        if not entry.id or not is_plain(entry.id):
            errors.append(
                f'{entry.source}: the id is {entry.id!r}. Give one without control characters, as "id" in '
                "--input-format jsonl."
            )
        elif (other := first.setdefault(entry.id, entry)) is not entry:
            errors.append(
                f"{entry.source}: the id {entry.id!r} is that of {other.source}, too. Leave one out, or give ids in "
                "--input-format jsonl."
            )
    held = index._store.held(list(first)) if index else ()
    errors += [
        f"{entry.source}: the id {own!r} is in the index already. Give --replace to replace its row."
        for own, entry in first.items()
        if own in held
    ]
    if errors:
        raise InputError(*errors)


def _embed(
    client: EmbeddingClient,
    entries: Sequence[Entry],
    dimensions: int,
    options: Mapping[str, Any],
    *,
    keep_going: bool,
) -> tuple[list[Entry], Embeddings]:
    kept, embeddings = embed_entries(client, entries, {**options, "dimensions": dimensions}, keep_going=keep_going)
    if not kept:
        raise click.ClickException("no item can be embedded. Nothing was written.")
    return kept, embeddings


def _put(write: Callable[..., None], entries: Sequence[Entry], embeddings: Embeddings) -> None:
    write(embeddings, ids=[entry.id for entry in entries], metadata=[entry.metadata for entry in entries])


def _save(index: Index, place: Place, num_rows: int) -> None:
    place.save(index)
    click.echo(f"note: {num_rows} rows added or replaced, {place.name} has {len(index)}", err=True)


@index.command()
@takes_place
@click.argument("output", metavar="OUTPUT", type=LocalPath(exists=True, file_okay=False))
@takes_design
def load_from_bulk(place: Place, output: Path, design: Mapping[str, Any]) -> None:
    """Fill an index with the vectors of `vlembed bulk`; no server is needed.

    The index is made if it is not there. Rows whose ids are there are replaced.
    """
    report = verify_ids(output)
    with place.open_or_create(dimensions=report.dimensions, fingerprint=report.fingerprint, **design) as filled:
        _save(filled, place, fill(filled, output))


@index.command()
@takes_place
@click.argument("ids", nargs=-1, metavar="[ID]...")
def delete(place: Place, ids: Sequence[str]) -> None:
    """Remove rows by their ids; no server is needed. Without IDs, standard input has one a line.

    An id that is not there is passed over.

    \b
      vlembed index delete photos.index old.jpg blurred.jpg
    """
    if not ids and sys.stdin.isatty():
        raise click.UsageError("No ids. Give some, or pipe lines of ids in.")
    given = list(ids or (entry.item.text or "" for entry in read_stdin("text")))
    with place.open() as opened:
        num_deleted = opened.delete(given)
        place.save(opened)
        click.echo(f"note: {num_deleted} of {len(given)} ids were there, {place.name} has {len(opened)} rows", err=True)


@index.command()
@takes_place
@takes_output("table", "json")
def info(place: Place, output: Output) -> None:
    """Show what an index holds, and the model that it is for."""
    require_apart({"INDEX": place.path, "--output": output.path})
    with place.open() as opened:
        told = {"rows": len(opened), **asdict(opened.info)}
    if output.format == "json":
        output.write(to_json(told))
        return
    options = told.pop("options")
    output.write(to_pairs({**told, **options}))
