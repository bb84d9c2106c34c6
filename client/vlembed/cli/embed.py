"""`vlembed embed`: items to vectors."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np

from .._client import EmbeddingClient
from .._extras import require
from .._result import Embeddings
from ..bulk._shards import METADATA_KEY
from ._inputs import Entry, refuse_metadata, takes_items
from ._options import ITEM_OPTIONS, takes_client, takes_embed_options
from ._outputs import Output, takes_output, to_floats, to_json, to_npy, to_table
from ._root import INCOMPLETE
from ._vectors import embed_entries, takes_keep_going

NUM_SHOWN = 4  # dimensions in a table


@click.command()
@takes_items
@takes_embed_options("instruction", "dimensions", *ITEM_OPTIONS)
@takes_keep_going
@takes_output("table", "json", "jsonl", "npy", "parquet")
@takes_client()
def embed(
    client: EmbeddingClient, entries: Sequence[Entry], options: Mapping[str, Any], keep_going: bool, output: Output
) -> int:
    """Turn texts and images into vectors.

    An ITEM that ends like an image file (.png, .jpg, ...) is a path or a quoted glob of images, `-` is standard input,
    and every other one is a text, unless it is the name of a file: that is refused. Without any, standard input is
    read, as a whole. Rows keep the order: ITEMs, --text, --image.

    \b
      vlembed embed "a red apple" 'photos/*.jpg' -o vectors.npy
      vlembed embed < lines.txt --format jsonl
      vlembed embed --input-format jsonl < items.jsonl -o vectors.parquet
    """
    refuse_metadata(entries)
    if keep_going and output.format == "npy":
        raise click.UsageError("--keep-going leaves rows out, and npy cannot say which. Choose another --format.")
    kept, embeddings = embed_entries(client, entries, options, keep_going=keep_going)
    output.write(FORMS[output.format](kept, embeddings))
    return INCOMPLETE if len(kept) < len(entries) else 0


def _rows(entries: Sequence[Entry], embeddings: Embeddings) -> list[dict[str, Any]]:
    return [
        {
            **entry.described(),
            "text_tokens": int(embeddings.text_tokens[i]),
            "image_tokens": int(embeddings.image_tokens[i]),
            "embedding": to_floats(embeddings.array[i]),
        }
        for i, entry in enumerate(entries)
    ]


def _table(entries: Sequence[Entry], embeddings: Embeddings) -> str:
    def start(row: np.ndarray[Any, Any]) -> str:
        return "  ".join(f"{value:+.3f}" for value in row[:NUM_SHOWN]) + "  …"

    size = embeddings.array.shape[1]
    columns = zip(entries, embeddings.text_tokens, embeddings.image_tokens, embeddings.array, strict=True)
    return to_table(
        ["item", "text tokens", "image tokens", f"embedding ({size})"],
        [(entry.label, text, image, start(row)) for entry, text, image, row in columns],
    )


def _json(entries: Sequence[Entry], embeddings: Embeddings) -> str:
    size = embeddings.array.shape[1]
    return to_json({"fingerprint": embeddings.fingerprint, "dimensions": size, "items": _rows(entries, embeddings)})


def _jsonl(entries: Sequence[Entry], embeddings: Embeddings) -> str:
    return "\n".join(map(to_json, _rows(entries, embeddings)))


def _npy(entries: Sequence[Entry], embeddings: Embeddings) -> bytes:
    return to_npy(embeddings.array)


def _parquet(entries: Sequence[Entry], embeddings: Embeddings) -> bytes:
    pyarrow, parquet = require("pyarrow", "bulk"), require("pyarrow.parquet", "bulk")
    size = embeddings.array.shape[1]
    columns = {
        "id": pyarrow.array([entry.id for entry in entries], pyarrow.string()),
        "text": pyarrow.array([entry.item.text for entry in entries], pyarrow.string()),
        "image": pyarrow.array([entry.image or None for entry in entries], pyarrow.string()),
        "text_tokens": pyarrow.array(embeddings.text_tokens),
        "image_tokens": pyarrow.array(embeddings.image_tokens),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeddings.array.ravel()), size),
    }
    table = pyarrow.table(columns, metadata={METADATA_KEY: to_json({"fingerprint": embeddings.fingerprint})})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


FORMS: dict[str, Callable[[Sequence[Entry], Embeddings], str | bytes]] = {
    "table": _table,
    "json": _json,
    "jsonl": _jsonl,
    "npy": _npy,
    "parquet": _parquet,
}
