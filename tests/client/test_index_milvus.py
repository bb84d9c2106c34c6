"""What only an index in Milvus can get wrong: connections and collections. tests/client/test_index.py has the rest."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pymilvus
import pytest
from pymilvus import MilvusClient

from tests.client.indexes import DIMENSIONS, FINGERPRINT, Exhaustive, assert_congruent, ids_of, vectors
from vlembed import ConnectError, EmbeddingClient, Index, InvalidInputError, MissingExtraError, ServerError, _index
from vlembed import _milvus_store as milvus

KNOWN = {"dimensions": DIMENSIONS, "fingerprint": FINGERPRINT}


def test_a_collection_is_opened_again(milvus_file: Path) -> None:
    ids, array = [f"row {number}" for number in range(50)], vectors(50)
    exhaustive = Exhaustive()
    exhaustive.upsert(ids, array, [{"n": 1}] * 50)
    with Index.connect(milvus_file, "again", instruction="Finde: 日本", m=8, **KNOWN) as index:
        index.add(array, ids=ids, metadata=[{"n": 1}] * 50, fingerprint=FINGERPRINT)
        info = index.info
    assert info.kind == "hnsw" and info.options == {"m": 8, "ef_construction": 200, "ef_search": 128}
    with Index.connect(str(milvus_file), "again") as index, Index.connect(milvus_file, "again", **KNOWN) as other:
        assert index.info == other.info == info
        assert_congruent("milvus hnsw", index, exhaustive, vectors(5, seed=2), 10, {"n": 1})
        assert other.delete(ids[:49]) == 49
        assert ids_of(index.search(array[0])) == ["row 49"] and len(index) == 1  # seen at once


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dimensions": 8, "fingerprint": FINGERPRINT}, "dimensions is 8, but the collection 'fixed' has 16"),
        ({"fingerprint": "other"}, "fingerprint is 'other', but the collection 'fixed' has 'f'"),
        ({"kind": "hnsw"}, "kind is 'hnsw', but the collection 'fixed' has 'flat'"),
        ({"instruction": "other"}, "instruction is 'other'"),
        ({"ef_search": 3}, "ef_search is 3, but the collection 'fixed' has None"),
        ({"instruction": ""}, "instruction is ''"),
    ],
)
def test_a_collection_of_another_kind_is_refused(milvus_file: Path, given: dict, says: str) -> None:
    Index.connect(milvus_file, "fixed", kind="flat", **KNOWN).close()
    with pytest.raises(InvalidInputError) as caught:
        Index.connect(milvus_file, "fixed", **given)
    assert says in str(caught.value)


def test_a_collection_of_another_model_is_refused(milvus_file: Path, client: EmbeddingClient) -> None:
    Index.connect(milvus_file, "other_model", **KNOWN).close()
    with pytest.raises(InvalidInputError, match="'0123456789abcdef', but the index holds vectors of 'f'"):
        Index.connect(milvus_file, "other_model", client=client)


def test_a_collection_of_another_program_is_refused(milvus_file: Path) -> None:
    foreign = MilvusClient(str(milvus_file))
    foreign.create_collection("foreign", dimension=DIMENSIONS)
    with pytest.raises(InvalidInputError, match="'foreign' was not made by vlembed"):
        Index.connect(milvus_file, "foreign", **KNOWN)
    foreign.close()


@pytest.mark.parametrize(
    ("collection", "options", "says"),
    [
        ("new", {}, "has no collection 'new'. To create it, pass a client, or dimensions and a fingerprint"),
        ("a-b", KNOWN, "collection is 'a-b'"),
        ("日本", KNOWN, "collection is '日本'"),
        ("a" * 256, KNOWN, "Use up to 255 ASCII letters"),
        ("new", {"kind": "ivfpq", **KNOWN}, "kind is 'ivfpq'. Pass one of 'flat', 'hnsw'"),
        ("new", {"nprobe": 3, **KNOWN}, "nprobe is no option"),
        ("new", {"m": 1, **KNOWN}, "m is 1. Pass a whole number, 2 to 2048"),
    ],
)
def test_what_is_refused(milvus_file: Path, collection: str, options: dict, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Index.connect(milvus_file, collection, **options)
    assert says in str(caught.value)


def test_what_is_refused_is_not_created(milvus_file: Path, client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match="holds vectors of 'typo'"):
        Index.connect(milvus_file, "not_created", client=client, fingerprint="typo")
    with Index.connect(milvus_file, "not_created", client=client, instruction="") as index:
        assert index.info.fingerprint == client.info().fingerprint and index.info.instruction == ""


def test_an_upsert_that_is_refused_changes_nothing(milvus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index, "BLOCK_ROWS", 2)
    with Index.connect(milvus_file, "refused_upsert", **KNOWN) as index:
        index.add(vectors(4), ids=list("abcd"), metadata=[{"n": 1}] * 4, fingerprint=FINGERPRINT)
        for last in ({"text": "é" * 40_000}, {"n": 2**63}, {"n": [{"m": -(2**64)}]}):
            with pytest.raises(
                InvalidInputError, match=r"the metadata of 'd' has (.* bytes|the number .* in 'n'); Milvus takes"
            ):
                index.upsert(vectors(4), ids=list("abcd"), metadata=[{"n": 2}] * 3 + [last], fingerprint=FINGERPRINT)
        assert len(index.search(vectors(1)[0], where={"n": 1})) == 4
        index.upsert(vectors(1, seed=1), ids=["d"], metadata=[{"n": [2**63 - 1]}], fingerprint=FINGERPRINT)
        assert index.search(vectors(1, seed=1)[0], 1)[0].metadata == {"n": [2**63 - 1]}


def test_a_collection_that_was_made_again_for_another_model(milvus_file: Path) -> None:
    index = Index.connect(milvus_file, "made_again", **KNOWN)
    other = MilvusClient(str(milvus_file))
    other.drop_collection("made_again")
    with pytest.raises(ServerError, match="Milvus refused or failed"):
        index.add(vectors(1), ids=["a"], fingerprint=FINGERPRINT)
    Index.connect(milvus_file, "made_again", **{**KNOWN, "fingerprint": "other"}).close()
    for change in (index.add, index.upsert):
        with pytest.raises(InvalidInputError, match=r"dropped and made again, as .*'other'.* Connect again"):
            change(vectors(1), ids=["a"], fingerprint=FINGERPRINT)
    index.close()
    other.close()


def test_what_could_not_be_taken_back_is_told(milvus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index, "BLOCK_ROWS", 2)
    index = Index.connect(milvus_file, "left", **KNOWN)
    add, calls = index._store.add, []

    def closing(*block: Any) -> None:
        calls.append(block)
        if len(calls) == 2:
            index._store.close()  # as when the connection is lost
        add(*block)

    monkeypatch.setattr(index._store, "add", closing)
    with pytest.raises(ServerError, match=r"is closed.* could not be taken back .*upsert all again"):
        index.add(vectors(4), ids=list("abcd"), fingerprint=FINGERPRINT)
    with Index.connect(milvus_file, "left", **KNOWN) as again:
        assert len(again) == 2


def test_the_limits_of_milvus(milvus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus, "MAX_IDS", 7)
    monkeypatch.setattr(milvus, "MAX_REQUEST_BYTES", 5 * 4 * DIMENSIONS)
    monkeypatch.setattr(milvus, "MAX_QUERIES", 3)
    with Index.connect(milvus_file, "limits", kind="flat", **KNOWN) as index:
        for own, metadata, says in [
            ("é" * 513, None, "has 1026 bytes; Milvus takes 1024"),
            ("a", {"text": "é" * 40_000}, r"has 800\d\d bytes; Milvus takes 65536"),
        ]:
            with pytest.raises(InvalidInputError, match=says):
                index.add(vectors(2), ids=["b", own], metadata=[None, metadata], fingerprint=FINGERPRINT)
        assert len(index) == 0
        ids = ["é" * 512, *map(str, range(99))]
        index.add(vectors(100), ids=ids, metadata=[{"text": "é" * 30_000}, *[None] * 99], fingerprint=FINGERPRINT)
        assert [ids_of(matches) for matches in index.search_batch(vectors(100), 1)] == [[own] for own in ids]
        with pytest.raises(InvalidInputError, match="k is 16385; Milvus returns 16384 rows at most"):
            index.search(vectors(1), 16_385)
        assert index.delete(ids) == 100 and len(index) == 0
        with pytest.raises(InvalidInputError, match="there is nothing to save"):
            index.save("a.index")


def test_a_connection_that_is_refused_at_first(milvus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter(milvus.CONNECT_PAUSES_S)

    def refuse_first(*args: Any, **kwargs: Any) -> Any:
        if next(refusals, None) is not None:
            raise pymilvus.MilvusException(message="refused")
        return MilvusClient(*args, **kwargs)

    monkeypatch.setattr(pymilvus, "MilvusClient", refuse_first)
    with Index.connect(milvus_file, "refused", **KNOWN) as index:
        assert len(index) == 0


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectError, match=f"cannot be reached at 'http://127.0.0.1:{port}'"):
        Index.connect(f"http://127.0.0.1:{port}", "name", timeout_s=0.3, **KNOWN)
    with pytest.raises(ConnectError, match="cannot be reached at 'ftp://somewhere'"):
        Index.connect("ftp://somewhere", "name", **KNOWN)


def test_what_milvus_refuses_or_loses(milvus_file: Path) -> None:
    index = Index.connect(milvus_file, "dropped", **KNOWN)
    dropping = MilvusClient(str(milvus_file))
    dropping.drop_collection("dropped")
    dropping.close()
    with pytest.raises(ServerError, match="Milvus refused or failed"):
        index.search(vectors(1))
    index.close()
    index.close()
    with pytest.raises(ConnectError, match=r"this index is closed\. Connect again"):
        len(index)


def test_milvus_lite_is_missing(milvus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with pytest.raises(MissingExtraError, match="pip install milvus-lite"):
        Index.connect(milvus_file, "name", **KNOWN)
