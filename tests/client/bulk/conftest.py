"""Runs against a server in memory, and what they left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.client.conftest import MemoryTransport
from vlembed.bulk import Report, embed_files

Run = Callable[..., Report]
SHARD_SIZE = 10


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def run(memory: MemoryTransport, output: Path) -> Run:
    """Embed files in shards of 10 rows."""

    def embed(source: Any, **options: Any) -> Report:
        options = {
            "output": output,
            "url": "memory",
            "shard_size": SHARD_SIZE,
            "client_options": {"transport": memory},
        } | options
        return embed_files(source, **options)

    return embed


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Return a file of 35 texts, of which the server refuses three and two are no JSON."""
    lines = [json.dumps({"id": f"id {number}", "text": f"text {number}", "n": number}) for number in range(35)]
    for number in (3, 4, 20):
        lines[number] = json.dumps({"id": f"id {number}", "text": "bad"})
    lines[11] = lines[34] = "{"
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return tmp_path / "texts.jsonl"


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the Parquet files in a folder by position, whatever the manifest says."""
    rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row["position"])
