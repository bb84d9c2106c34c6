"""`vlembed bulk`: files of items to Parquet files of vectors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import click

from ..bulk import Columns, embed_files, verify
from ..bulk._output import read_failures
from ..bulk._run import SHARD_SIZE, Dtype, Engine
from ._local_path import LocalPath
from ._options import ITEM_OPTIONS, takes_embed_options, takes_server
from ._outputs import Output, takes_output, to_json, to_pairs
from ._root import INCOMPLETE, print_errors

NUM_FAILURES = 5  # that are told
ROLES = [field.name for field in fields(Columns)]


def _parse_columns(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> Columns:
    names = {}
    for column in given:
        role, _, name = column.partition("=")
        if role not in ROLES or not name:
            raise click.UsageError(f"--column is {column!r}. Give {', '.join(f'{own}=NAME' for own in ROLES)}.")
        names[role] = name
    return Columns(**names)


def _check_paths(paths: Sequence[Path]) -> Sequence[Path]:
    if len(paths) < 2:
        given = f"only {str(paths[0])!r} is given" if paths else "none is given"
        raise click.UsageError(f"INPUT and OUTPUT are needed, and {given}. Give files or folders, then a new folder.")
    for path in paths[:-1]:
        if not path.exists():
            is_glob = "Leave the quotes off, or give the folder." if "*" in path.name else "Give files or folders."
            raise click.UsageError(f"INPUT {str(path)!r} does not exist. {is_glob}")
    if paths[-1].is_file():
        raise click.UsageError(f"OUTPUT {str(paths[-1])!r} is a file. Give a folder, after the INPUTs.")
    return paths


@click.command()
@click.argument("paths", nargs=-1, metavar="INPUT... OUTPUT", type=LocalPath())
@click.option(
    "--column",
    "columns",
    multiple=True,
    callback=_parse_columns,
    metavar="ROLE=NAME",
    help="The name of a column: id=NAME, text=NAME, image=NAME or instruction=NAME, where it is not the role. "
    "Repeatable; all other columns are metadata.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=SHARD_SIZE,
    show_default=True,
    metavar="ROWS",
    help="Rows of a file of the output.",
)
@click.option(
    "--dtype", type=click.Choice(get_args(Dtype)), default="float32", show_default=True, help="Of the stored vectors."
)
@click.option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    default="local",
    show_default=True,
    help="ray embeds several shards at once, on the cluster of RAY_ADDRESS or on this machine.",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Shards at once with ray; by default as many as it has CPUs."
)
@click.option("--retry-errors", is_flag=True, help="Embed only the rows that failed again, of a run that has ended.")
@click.option("--verify", "is_verified", is_flag=True, help="Read everything back and hold it against its checksums.")
@takes_embed_options("instruction", "dimensions", *ITEM_OPTIONS)
@takes_output("table", "json", to_file=False)
@takes_server
def bulk(
    paths: Sequence[Path],
    columns: Columns,
    shard_size: int,
    dtype: Dtype,
    engine: Engine,
    workers: int | None,
    retry_errors: bool,
    is_verified: bool,
    options: Mapping[str, Any],
    output: Output,
    server: Mapping[str, Any],
) -> int:
    """Embed every row of files into Parquet files in the folder OUTPUT.

    An INPUT is a .jsonl, .csv, .tsv, .parquet or .tar (webdataset) file, an image, or a folder of such. Side files in
    folders (hidden ones, @eaDir, __MACOSX) and links to folders are left out and counted. The same command again goes
    on with a run that ended early. Rows that cannot be embedded are in OUTPUT/errors with the reason, and make the exit
    status 3.

    \b
      vlembed bulk products.jsonl photos/ vectors/
      vlembed bulk captions.csv vectors/ --column text=caption --engine ray
      vlembed bulk products.jsonl vectors/ --retry-errors --verify
    """
    *inputs, folder = _check_paths(paths)
    if workers and engine != "ray":
        raise click.UsageError(f"--workers is {workers}, and --engine {engine} has one. Add --engine ray.")
    client_options = dict(server)
    try:
        report = embed_files(
            inputs,
            folder,
            url=client_options.pop("url"),
            client_options=client_options,
            columns=columns,
            shard_size=shard_size,
            dtype=dtype,
            engine=engine,
            num_workers=workers,
            retry_errors=retry_errors,
            progress=sys.stderr.isatty(),
            **options,
        )
    except KeyboardInterrupt:
        click.echo("note: the same command goes on with this run", err=True)
        raise
    if is_verified:
        report = replace(verify(folder), ignored=report.ignored)
    if report.num_errors:
        failures = read_failures(folder, NUM_FAILURES)
        print_errors([f"{failure['place']}: {failure['message']}" for failure in failures])
        click.echo(f"note: {report.num_errors} rows failed, {folder}/errors has the reasons", err=True)
    told = asdict(report)
    output.write(to_json(told) if output.format == "json" else to_pairs(told))
    return INCOMPLETE if report.num_errors else 0
