"""`vlembed search`: what an index has that is like a text or an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from .._client import EmbeddingClient
from .._store import Match
from ._conditions import parse_conditions
from ._inputs import Entry, is_named_as_image, refuse_metadata, takes_items
from ._local_path import LocalPath
from ._options import ITEM_OPTIONS, takes_client, takes_embed_options
from ._outputs import Output, require_apart, takes_output, to_json, to_table, to_text, write_file
from ._places import Place, takes_place
from ._report import Card, picture_of, to_html
from ._vectors import embed_entries

Result = tuple[Entry, Sequence[Match]]


@click.command()
@takes_place
@takes_items
@click.option(
    "-k", default=10, show_default=True, type=click.IntRange(1), metavar="K", help="How many matches for each query."
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help='Only what has such metadata: FIELD=VALUE, or with ==, !=, <, <=, >, >=; \'language=["de", "fr"]\' is either. '
    "Numbers, true and false are such; quote a string that looks like one. Repeatable: all have to hold.",
)
@click.option(
    "--report",
    type=LocalPath(dir_okay=False),
    metavar="FILE.html",
    help="Write a page with the pictures that were found and their scores, too. It is one file; one that is there is "
    "overwritten.",
)
@click.option(
    "--pictures",
    type=LocalPath(file_okay=False, exists=True),
    default=".",
    metavar="FOLDER",
    help="Where the relative paths of pictures begin, for --report. Default: this folder.",
)
@takes_embed_options(*ITEM_OPTIONS)
@takes_output("table", "json", "jsonl")
@takes_client()
def search(
    client: EmbeddingClient,
    place: Place,
    entries: Sequence[Entry],
    k: int,
    conditions: Sequence[str],
    report: Path | None,
    pictures: Path,
    options: Mapping[str, Any],
    output: Output,
) -> None:
    """Search an index by texts and images.

    ITEMs are the queries, as for `vlembed embed`. INDEX is as for `vlembed index`. To find nothing is no error.

    \b
      vlembed search photos.index "ein roter Apfel" -k 5
      vlembed search photos.index sketch.png --where language=de --where 'year>=2020'
      vlembed search photos.index < queries.txt --report found.html
    """
    refuse_metadata(entries)
    where = parse_conditions(conditions)
    if report and not report.parent.is_dir():
        raise click.UsageError(f"--report is {str(report)!r}, in no folder that exists.")
    require_apart({"INDEX": place.path, "--output": output.path, "--report": report})
    with place.open(client) as index:
        info = index.info
        options = {**options, "instruction": info.instruction, "dimensions": info.dimensions}
        _, queries = embed_entries(client, entries, options)
        found = index.search_batch(queries, k, where=where)
    results = list(zip(entries, found, strict=True))
    if report:  # first, for the reader of the result may leave
        facts = {
            "checkpoint": client.info().checkpoint,
            "fingerprint": info.fingerprint,
            "kind": info.kind,
            "k": str(k),
        }
        facts |= {"where": " and ".join(conditions)} if conditions else {}
        write_file(report, _page(place.name, facts, results, pictures).encode(errors="replace"))
    output.write(FORMS[output.format](results))


def _row(result: Result) -> dict[str, Any]:
    entry, matches = result
    told = [{"id": match.id, "score": round(match.score, 6), "metadata": match.metadata} for match in matches]
    return {"query": entry.described(), "matches": told}


def _table(results: Sequence[Result]) -> str:
    rows = [
        (entry.label, str(rank), match.score, match.id, _others(match))
        for entry, matches in results
        for rank, match in enumerate(matches, 1)
    ]
    return to_table(["query", "rank", "score", "id", "metadata"], rows)


def _others(match: Match) -> str:
    """Return the metadata that an id does not say already."""
    return ", ".join(f"{name}={to_text(value)}" for name, value in match.metadata.items() if value != match.id)


FORMS: dict[str, Callable[[Sequence[Result]], str]] = {
    "table": _table,
    "json": lambda results: to_json({"results": list(map(_row, results))}),
    "jsonl": lambda results: "\n".join(to_json(_row(result)) for result in results),
}


def _page(place: str, facts: Mapping[str, str], results: Sequence[Result], pictures: Path) -> str:
    missing: list[str] = []

    @cache
    def picture(image: str) -> tuple[str, str]:
        """Return the data: URI of a picture, and the path of one that cannot be read."""
        try:
            return picture_of(image, pictures) if image else "", ""
        except (OSError, ValueError):  # the latter of a NUL in a path
            missing.append(image)
            return "", image

    def card(match: Match) -> Card:
        facts = {name: to_text(value) for name, value in match.metadata.items()}
        image = facts.pop("image", match.id if is_named_as_image(match.id) else "")
        return Card(match.id, facts.pop("text", ""), *picture(image), facts)

    def query(entry: Entry) -> Card:
        return Card(entry.id, entry.item.text or "", *picture(entry.image))

    shown = [(query(entry), [(card(match), match.score) for match in matches]) for entry, matches in results]
    if missing:
        click.echo(f"note: no picture at {len(missing)} paths in {str(pictures)!r}, as {missing[0]!r}", err=True)
    return to_html(place, facts, shown)
