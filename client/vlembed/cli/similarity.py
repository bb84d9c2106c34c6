"""`vlembed similarity`: items or vectors, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from .._client import EmbeddingClient
from .._paths import local_path
from .._result import Embeddings
from .._similarity import Metric
from .._similarity import similarity as compare
from ._inputs import Entry, is_named_as_image, read_argument, refuse_metadata, takes_input_format
from ._options import ITEM_OPTIONS, takes_client, takes_embed_options
from ._outputs import Output, shorten, takes_output, to_floats, to_json, to_npy, to_table
from ._root import InputError
from ._vectors import embed_entries

CURE = (
    "Give a text that looks like the name of a file in standard input, as `-`, and with --allow-reference-text if it "
    "looks like that of an image; give an image that does not with --input-format jsonl."
)
MAX_HEADER = 20  # columns of a name above a matrix
Vectors = np.ndarray[Any, Any]


@click.command()
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@click.option("--with", "others", multiple=True, metavar="ITEM", help="Compare with this instead. Repeatable.")
@click.option("--pairwise", is_flag=True, help="Compare the first ITEM with the first --with, and so on.")
@click.option(
    "--metric", type=click.Choice(get_args(Metric)), default="cosine", show_default=True, help="Distances are negative."
)
@takes_input_format
@takes_embed_options("instruction", "dimensions", *ITEM_OPTIONS)
@takes_output("table", "json", "npy")
@takes_client()
def similarity(
    client: EmbeddingClient,
    items: Sequence[str],
    others: Sequence[str],
    pairwise: bool,
    metric: Metric,
    input_format: str,
    options: Mapping[str, Any],
    output: Output,
) -> None:
    """Compare texts, images and vectors; higher is more similar.

    Compares every ITEM with every ITEM of --with, or without that option, all ITEMs with each other. An ITEM is a text,
    an image or `-`, as for `vlembed embed`, or a file of vectors that ends in .npy.

    \b
      vlembed similarity "a red apple" "ein roter Apfel" apple.png
      vlembed similarity "a red apple" --with 'photos/*.jpg'
      vlembed similarity vectors.npy --with others.npy --pairwise --format json
    """
    if pairwise and not others:
        raise click.UsageError("--pairwise compares ITEMs with those of --with, and there are none.")
    rows, read = _read(items, input_format)
    columns, read_others = _read(others, input_format) if others else (rows, read)
    vectors = partial(_vectors, client=client, options=options)
    left = vectors(read)
    right = vectors(read_others) if others else left
    scores = compare(left, right, metric=metric, pairwise=pairwise)
    if output.format == "npy":
        output.write(to_npy(scores))
    elif output.format == "json":
        named = {"metric": metric, "pairwise": pairwise, "rows": rows, "columns": columns}
        output.write(to_json({**named, "similarity": to_floats(scores)}))
    elif pairwise:
        output.write(to_table(["", "", metric], zip(rows, columns, scores.tolist(), strict=True)))
    else:
        if len(columns) > len(rows):  # longer is easier to read than wider
            rows, columns, scores = columns, rows, scores.T
        short = (Path(name).name if is_named_as_image(name) else name for name in columns)
        header = [metric, *(shorten(name, MAX_HEADER) for name in short)]
        output.write(to_table(header, [[name, *row] for name, row in zip(rows, scores.tolist(), strict=True)]))


def _read(items: Sequence[str], input_format: str) -> tuple[list[str], list[Entry] | Vectors]:
    """Return the names of n rows, and what is to be embedded or is vectors (n, d) already."""
    are_files = {item.endswith(".npy") for item in items}
    if len(are_files) > 1:
        raise InputError("One side has both .npy files and items to embed. Give the ones as ITEMs, the others --with.")
    if True in are_files:
        parts = [_load(item) for item in items]
        names = [f"{item}[{row}]" for item, part in zip(items, parts, strict=True) for row in range(len(part))]
        if len({part.shape[1] for part in parts}) > 1:
            shapes = ", ".join(str(part.shape) for part in parts)
            raise InputError(f"the arrays of one side are {shapes}; all need the same dimensions.")
        return names, np.concatenate(parts)
    entries = [entry for item in items for entry in read_argument(item, input_format, CURE)]
    refuse_metadata(entries)
    return [entry.given_id or entry.label for entry in entries], entries


def _vectors(
    read: list[Entry] | Vectors, *, client: EmbeddingClient, options: Mapping[str, Any]
) -> Embeddings | Vectors:
    return read if isinstance(read, np.ndarray) else embed_entries(client, read, options)[1]


def _load(path: str) -> Vectors:
    file = local_path(path, "an ITEM")
    try:
        vectors: Vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path!r} is no .npy file that can be read ({error}).") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        raise InputError(f"{path!r} holds {np.shape(vectors)} instead of one array of vectors (n, d).")
    return vectors
