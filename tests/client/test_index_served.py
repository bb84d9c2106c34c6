"""The index with a real server: pictures found by their names in many languages, in FAISS and in Milvus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.launch import TritonServer
from vlembed import EmbeddingClient, Index, InvalidInputError, Item

pytestmark = pytest.mark.triton

DEMONSTRATION = Path(__file__).resolve().parents[2] / "demo"
PICTURES = sorted((DEMONSTRATION / "images").glob("*.png"))
QUERIES = [json.loads(line) for line in (DEMONSTRATION / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def client(demo_server: TritonServer) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(demo_server.grpc_url) as connected:
        connected.wait_until_ready()
        yield connected


@pytest.mark.parametrize("kind", ["flat", "hnsw", "int8", "binary", "ivfpq", "milvus"])
def test_pictures_by_their_names(kind: str, client: EmbeddingClient, tmp_path: Path, milvus_file: Path) -> None:
    if kind == "milvus":
        index = Index.connect(milvus_file, "pictures", client=client)
    else:
        index = Index.create(kind, client=client)
    metadata = [{"letters": len(path.stem)} for path in PICTURES]
    with index:
        index.add(PICTURES, ids=[path.stem for path in PICTURES], metadata=metadata)
        if kind != "milvus":
            index.save(tmp_path / "pictures.index")
            index = Index.load(tmp_path / "pictures.index", client=client)
        found = index.search_batch([query["text"] for query in QUERIES], 3)
        assert [matches[0].id for matches in found] == [query["image"] for query in QUERIES]
        queries = client.embed_query([query["text"] for query in QUERIES], index.info.instruction)
        theirs = client.similarity(queries, client.embed_document(PICTURES))
        for ours, row in zip(found, theirs, strict=True):
            assert ours[0].score == pytest.approx(row.max(), abs=1e-4)
            assert len(ours) == 3 and ours[0].metadata == {"letters": len(ours[0].id)}
        star = next(path for path in PICTURES if path.stem == "star")
        for query in (star, star.read_bytes(), Item(text="star", image=star), client.embed(star)):
            assert index.search(query, 1)[0].id == "star"
        few = index.search("star", where={"letters": {"<": 4}})
        assert {match.id for match in few} == {path.stem for path in PICTURES if len(path.stem) < 4}


def test_a_smaller_size(client: EmbeddingClient) -> None:
    size = client.info().min_dimensions
    index = Index.create(client=client, dimensions=size)
    index.add(PICTURES, ids=[path.stem for path in PICTURES])
    right = sum(index.search(query["text"], 1)[0].id == query["image"] for query in QUERIES)
    assert index.info.dimensions == size and right > len(QUERIES) / 2
    with pytest.raises(InvalidInputError, match="this index takes floats"):
        index.search(client.embed("star"))
