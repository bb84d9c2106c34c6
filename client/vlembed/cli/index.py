"""`vlembed index`: make an index of items, add to it, and tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from .._client import DEFAULT_QUERY_INSTRUCTION, EmbeddingClient
from .._faiss_kinds import KINDS
from .._index import Index
from .._items import DATA_URI
from ._inputs import Command, Entry, takes_items
from ._options import ITEM_OPTIONS, takes_client, takes_embed_options
from ._outputs import Output, takes_output, to_json, to_pairs
from ._places import Place, takes_place
from ._root import INCOMPLETE
from ._vectors import embed_entries, takes_keep_going


@click.group()
def index() -> None:
    """Make an index of texts and images, add to it, and tell of it.

    \b
    INDEX is a file, or a collection in Milvus:
      photos.index
      milvus+http://host:19530/photos
      milvus+file:milvus.db/photos

    Each item is a row with an id: its own in JSON lines, else the path of its image, else its text. Its metadata is its
    text, the path of its image, and all other fields of its JSON line; `vlembed search --where` filters by them.
    """


def takes_kind(command: Command) -> Command:
    """Add the options of a new index."""

    def _parse(_: click.Context, __: click.Parameter, given: Sequence[str]) -> dict[str, int]:
        pairs = [option.partition("=") for option in given]
        for name, _equals, value in pairs:
            if not value.isdecimal():
                raise click.UsageError(f"--option is {name!r}. Give NAME=NUMBER, for example ef_search=256.")
        return {name: int(value) for name, _equals, value in pairs}

    kind = click.option(
        "--kind", type=click.Choice(list(KINDS)), help="Default: flat, which compares all; in Milvus hnsw."
    )
    option = click.option(
        "--option",
        "kind_options",
        multiple=True,
        callback=_parse,
        metavar="NAME=NUMBER",
        help="Of the kind, as for Index.create, for example ef_search=256. Repeatable.",
    )
    return kind(option(command))


@index.command()
@takes_place
@takes_items
@takes_kind
@click.option("--dimensions", type=int, metavar="D", help="A smaller (Matryoshka) size of the vectors.")
@click.option(
    "--query-instruction",
    default=DEFAULT_QUERY_INSTRUCTION,
    show_default=True,
    metavar="TEXT",
    help="What is to be found, for the queries to come.",
)
@takes_embed_options(*ITEM_OPTIONS)
@takes_keep_going
@takes_client()
def create(
    client: EmbeddingClient,
    place: Place,
    entries: Sequence[Entry],
    kind: str | None,
    kind_options: Mapping[str, int],
    dimensions: int | None,
    query_instruction: str,
    options: Mapping[str, Any],
    keep_going: bool,
) -> int:
    """Make an index of items, which are given as for `vlembed embed`.

    \b
      vlembed index create photos.index 'photos/**/*.jpg' --kind hnsw
      vlembed index create notes.index --input-format jsonl < notes.jsonl
    """
    with place.create(
        kind, client=client, dimensions=dimensions, instruction=query_instruction, **kind_options
    ) as made:
        return _fill(made, place, client, entries, options, keep_going=keep_going, replace=True)


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
    with place.open() as opened:
        return _fill(opened, place, client, entries, options, keep_going=keep_going, replace=replace)


def _fill(
    index: Index,
    place: Place,
    client: EmbeddingClient,
    entries: Sequence[Entry],
    options: Mapping[str, Any],
    *,
    keep_going: bool,
    replace: bool,
) -> int:
    options = {**options, "dimensions": index.info.dimensions}
    kept, embeddings = embed_entries(client, entries, options, keep_going=keep_going)
    write = index.upsert if replace else index.add
    write(embeddings, ids=[entry.id for entry in kept], metadata=[_metadata(entry) for entry in kept])
    place.save(index)
    click.echo(f"note: {len(kept)} items added, {len(index)} are in {place.name}", err=True)
    return INCOMPLETE if len(kept) < len(entries) else 0


def _metadata(entry: Entry) -> dict[str, Any]:
    """Return what is known of an item; pictures stay in their files, and those of data: URIs are not kept."""
    own = {"text": entry.item.text, "image": "" if DATA_URI.fullmatch(entry.image) else entry.image}
    return {name: value for name, value in own.items() if value} | dict(entry.metadata)


@index.command()
@takes_place
@takes_output("table", "json")
def info(place: Place, output: Output) -> None:
    """Show what an index holds: its kind, rows, dimensions, and the model whose vectors it is for."""
    with place.open() as opened:
        told = {"rows": len(opened), **asdict(opened.info)}
    if output.format == "json":
        output.write(to_json(told))
        return
    options = told.pop("options")
    output.write(to_pairs({**told, **options}))
