"""The command as people and scripts use it: a process, a real server, files, pipes and exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from tests.client.cli.conftest import ROOT, Shell
from vlembed import EmbeddingClient

pytestmark = pytest.mark.triton

IMAGES = ["demo/images/dog.png", "demo/images/red_apple.png", "demo/images/rocket.png"]
QUICKSTART = ROOT / "demo/quickstart.jsonl"  # names in 18 languages, and the pictures that they are of
ATOL = 1e-5  # neighbours in a batch change the last bits of fp32


def succeeded(ran: subprocess.CompletedProcess[str]) -> str:
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_embed_to_every_form(shell: Shell, demo_server: TritonServer, tmp_path: Path) -> None:
    with EmbeddingClient(demo_server.grpc_url) as client:
        theirs = client.embed(["a red apple", "تفاحة حمراء", *(tmp_path / path for path in IMAGES[:2])], dimensions=64)
    args = ["embed", "a red apple", "-", "demo/images/[dr]*[ge].png", "--dimensions", "64"]
    for form in ("json", "jsonl", "npy", "parquet"):
        assert succeeded(shell(*args, "-o", f"x.{form}", stdin="تفاحة حمراء\n")) == ""
    told = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert told["fingerprint"] == theirs.fingerprint
    assert [item["id"] for item in told["items"]] == ["a red apple", "تفاحة حمراء", *IMAGES[:2]]
    assert [item["image_tokens"] for item in told["items"]] == theirs.image_tokens.tolist()
    np.testing.assert_allclose([item["embedding"] for item in told["items"]], theirs.array, atol=ATOL)
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    np.testing.assert_allclose([json.loads(line)["embedding"] for line in lines], theirs.array, atol=ATOL)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), theirs.array, atol=ATOL)
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "x.parquet")
    np.testing.assert_allclose(table.column("embedding").to_pylist(), theirs.array, atol=ATOL)
    assert json.loads(table.schema.metadata[b"vlembed"])["fingerprint"] == theirs.fingerprint
    assert "demo/images/dog.png" in succeeded(shell(*args, "--format", "table", stdin="تفاحة حمراء\n"))


def test_both_protocols(shell: Shell, demo_server: TritonServer) -> None:
    texts = ["eins", "two"]
    ours, theirs = (
        json.loads(succeeded(shell("embed", *texts, "--url", url)))
        for url in (demo_server.http_url, demo_server.grpc_url)
    )
    assert [item["text"] for item in ours["items"]] == texts
    rows = ([item["embedding"] for item in told["items"]] for told in (ours, theirs))
    np.testing.assert_allclose(*rows, atol=ATOL)


def test_similarity_finds_the_apple(shell: Shell) -> None:
    others = [part for path in IMAGES for part in ("--with", path)]
    told = json.loads(succeeded(shell("similarity", "a red apple", "ein Hund", *others)))
    assert told["columns"] == IMAGES
    assert np.argmax(told["similarity"], axis=1).tolist() == [1, 0]


def test_info(shell: Shell, demo_server: TritonServer) -> None:
    with EmbeddingClient(demo_server.grpc_url) as client:
        assert json.loads(succeeded(shell("info")))["fingerprint"] == client.info().fingerprint


@pytest.mark.parametrize("place", ["pictures.index", "milvus+file:pictures.db/pictures"])
def test_pictures_are_found_in_18_languages(shell: Shell, tmp_path: Path, place: str) -> None:
    pytest.importorskip("milvus_lite" if "milvus" in place else "faiss")
    rows = [json.loads(line) for line in QUICKSTART.read_text(encoding="utf-8").splitlines()]
    ran = shell("index", "create", place, "demo/images/*.png")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert json.loads(succeeded(shell("index", "info", place)))["rows"] == 18
    queries = "\n".join(row["text"] for row in rows)
    told = json.loads(succeeded(shell("search", place, "-k", "3", "--report", "found.html", stdin=queries)))["results"]
    assert [own["query"]["text"] for own in told] == [row["text"] for row in rows]
    assert [own["matches"][0]["id"] for own in told] == [f"demo/images/{row['image']}.png" for row in rows]
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 3 * len(rows)
    assert all(row["text"] in page for row in rows)
    (found,) = json.loads(succeeded(shell("search", place, "demo/images/dog.png", "-k", "1")))["results"]
    assert found["matches"][0]["id"] == "demo/images/dog.png"


def test_an_index_has_its_own_dimensions(shell: Shell) -> None:
    pytest.importorskip("faiss")
    assert shell("index", "create", "small.index", "a", "--dimensions", "64").returncode == 0
    assert shell("index", "add", "small.index", "b").returncode == 0
    assert json.loads(succeeded(shell("index", "info", "small.index")))["dimensions"] == 64
    assert succeeded(shell("search", "small.index", "a"))


@pytest.mark.parametrize("place", ["bulk.index", "milvus+file:bulk.db/bulk"])
def test_files_to_vectors_to_an_index(shell: Shell, tmp_path: Path, place: str) -> None:
    pytest.importorskip("milvus_lite" if "milvus" in place else "faiss")
    pytest.importorskip("pyarrow")
    rows = [{"key": "cat", "words": "a cat", "language": "en"}, {"words": "", "key": "nothing"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shutil.copytree(ROOT / "demo/images", tmp_path / "images")
    (tmp_path / "images/dog.png").write_bytes(b"no picture")
    args = [
        "bulk",
        "rows.jsonl",
        "images",
        "vectors",
        "--column",
        "id=key",
        "--column",
        "text=words",
        "--dimensions",
        "64",
    ]
    ran = shell(*args)
    *failures, note = ran.stderr.splitlines()
    assert (ran.returncode, note) == (3, "note: 2 rows failed, vectors/errors has the reasons")
    assert [line.split(": ")[:2] for line in failures] == [["error", "rows.jsonl:2"], ["error", "images/dog.png"]]
    assert json.loads(ran.stdout)["errors"] == {"ITEM_EMPTY": 1, "IMAGE_UNDECODABLE": 1}
    shutil.copy(ROOT / "demo/images/dog.png", tmp_path / "images/dog.png")
    ran = shell(*args, "--retry-errors", "--verify", "--format", "table")
    assert ran.returncode == 3
    assert "errors         1 ITEM_EMPTY" in ran.stdout.splitlines()
    loading = shell("index", "load-from-bulk", place, "vectors", "--kind", "flat")
    assert (loading.returncode, loading.stderr) == (0, f"note: 19 rows added or replaced, {place} has 19\n")
    told = json.loads(succeeded(shell("search", place, "ein Hund", "-k", "1", "--report", "found.html")))
    assert told["results"][0]["matches"][0]["id"] == "images/dog.png"
    assert "data:image/webp" in (tmp_path / "found.html").read_text(encoding="utf-8")
    told = json.loads(succeeded(shell("search", place, "x", "--where", "language=en")))
    assert [match["id"] for match in told["results"][0]["matches"]] == ["cat"]
    assert shell("index", "load-from-bulk", place, "vectors", "--kind", "hnsw").returncode == 2


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["info", "--url", "grpc://127.0.0.1:1"], 1, "cannot reach grpc://127.0.0.1:1"),
        (["embed", "a", "--url", "http://127.0.0.1:1"], 1, "cannot reach http://127.0.0.1:1"),
        (["embed", "a", "--url", "ftp://127.0.0.1"], 2, "url is 'ftp://127.0.0.1'"),
        (["embed", "a", "--ca-file", "none.pem"], 2, "tls is given"),
        (["embed", "--image", "demo/images/LICENSE"], 2, "'demo/images/LICENSE': image is of no known format"),
        (["embed", "demo/images/no*.png"], 2, "'demo/images/no*.png' matches no file"),
        (["embed", "a", "--dimensions", "3"], 2, "dimensions is 3; this server takes 64 to 192"),
        (["embed", "a", "--frobnicate"], 2, "--frobnicate"),
        (["embed", "cat " * 9000], 2, "give --truncate"),
        (["embed", "a", "-o", "/proc/vectors.npy"], 1, "/proc/vectors.npy"),
    ],
)
def test_failures(shell: Shell, args: list[str], status: int, told: str) -> None:
    ran = shell(*args)
    assert (ran.returncode, ran.stdout) == (status, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


@pytest.mark.parametrize("form", ["json", "jsonl", "npy", "table"])
def test_a_reader_that_is_gone(shell: Shell, form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        ran = shell("embed", "a cat", "--format", form, stdout=pipe)
    assert (ran.returncode, ran.stderr) == (141, "")
