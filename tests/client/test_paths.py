"""URLs where a path of this machine is meant: refused in Python, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import MemoryTransport
from vlembed import Index, InvalidInputError
from vlembed._paths import is_url
from vlembed.bulk import embed_files, load_into, read_blocks, verify

KNOWN = {"dimensions": 8, "fingerprint": "f"}
URLS = ["s3://bucket/out", Path("s3://bucket/out"), "gs://b", "hdfs:///o.db", "file:///o", "S3:/o.db", " az://b/o.db"]


def embed(memory: MemoryTransport, source: Any, output: Any) -> None:
    embed_files(source, output, url="memory", client_options={"transport": memory})


@pytest.mark.parametrize("url", URLS, ids=repr)
def test_a_url_is_no_path(
    url: str | Path, memory: MemoryTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}')
    index = Index.create(**KNOWN)
    uses: list[Callable[[], object]] = [
        lambda: index.save(url),
        lambda: Index.load(url),
        lambda: Index.connect(Path(url), "c", **KNOWN),
        lambda: Index.connect(f"{url}.db", "c", **KNOWN),
        lambda: embed(memory, "rows.jsonl", url),
        lambda: embed(memory, url, "out"),
        lambda: embed(memory, ["rows.jsonl", url], "out"),
        lambda: verify(url),
        lambda: next(read_blocks(url)),
        lambda: load_into(index, url),
    ]
    for use in uses:
        with pytest.raises(InvalidInputError, match=r"is ' ?\w+://?.*', a URL; .*\. (Mount|Pass)"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("value", [5, b"out", None, "a\0b"])
def test_what_is_no_path_at_all(value: Any) -> None:
    for use in (Index.create(**KNOWN).save, Index.load, verify):
        with pytest.raises(InvalidInputError, match=r"which is no path\. Pass a str or a Path"):
            use(value)


def test_a_message_does_not_grow_with_the_path() -> None:
    with pytest.raises(InvalidInputError) as caught:
        Index.load("s3://" + "a" * 1_000_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("path", ["out", "/out", "../a b", "C:/out", "a:b", "./s3", "out:", "日本/o"])
def test_a_path_is_one(path: str) -> None:
    assert not is_url(path)
