"""What travels between processes: clients by their settings, results and errors whole, indexes not at all."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import MemoryTransport, vector
from tests.client.faults import SERVE
from tests.client.indexes import FINGERPRINT, vectors
from vlembed import (
    TLS,
    ConnectError,
    EmbeddingClient,
    Index,
    InvalidInputError,
    Item,
    ItemError,
    MissingExtraError,
    Retry,
    VlembedError,
)

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
ways = pytest.mark.parametrize("travel", WAYS.values(), ids=WAYS)


@ways
@pytest.mark.parametrize("protocol", SERVE)
def test_a_client_connects_anew(travel: Any, protocol: str, memory: MemoryTransport) -> None:
    with SERVE[protocol](memory) as url:
        client = EmbeddingClient(url, concurrency=2)
        client.embed("a")
        with travel(client) as other:
            client.close()
            np.testing.assert_array_equal(other.embed("b").array[0], vector(b"b"))
        with travel(client) as other:  # to be closed is no setting
            np.testing.assert_array_equal(other.embed("c").array[0], vector(b"c"))
        with pytest.raises(ConnectError):
            client.embed("d")


@ways
def test_a_client_keeps_its_settings(travel: Any, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("")
    settings = {
        "timeout_s": 3.0,
        "total_timeout_s": 9.0,
        "retry": Retry(max_attempts=2),
        "concurrency": 7,
        "tls": TLS(ca_file=ca_file),
        "headers": {"authorization": "Bearer x"},
    }
    client = EmbeddingClient(["grpcs://127.0.0.1:1", "grpcs://127.0.0.1:2"], **settings)  # type: ignore[arg-type]
    other = travel(client)
    for name in ("_urls", *(f"_{name}" for name in settings)):
        assert getattr(other, name) == getattr(client, name)
    assert other._transport is not client._transport


def test_a_client_with_a_transport_of_the_users(client: EmbeddingClient) -> None:
    np.testing.assert_array_equal(copy.copy(client).embed("a").array[0], vector(b"a"))


def embed(client: EmbeddingClient, text: str) -> Any:
    return client.embed(text)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_client_goes_to_other_processes(method: str, memory: MemoryTransport) -> None:
    context = multiprocessing.get_context(method)
    with (
        SERVE["http"](memory) as url,
        EmbeddingClient(url) as client,
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        client.embed("a")
        ours = pool.submit(embed, client, "b").result()
        np.testing.assert_array_equal(ours.array[0], vector(b"b"))
        with pytest.raises(InvalidInputError) as caught:
            pool.submit(embed, client, "bad").result()
    assert caught.value.items == (ItemError(0, "BAD", "item 0 is bad"),)
    assert caught.value.code == ""


@ways
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_an_index_says_how_it_travels(travel: Any, kind: str) -> None:
    index = Index.create(kind, dimensions=16, fingerprint=FINGERPRINT)
    with pytest.raises(InvalidInputError, match=r"Index\.save, Index\.load"):
        travel(index)


@pytest.mark.parametrize("travel", [WAYS["pickle"], WAYS["deepcopy"]], ids=["pickle", "deepcopy"])
def test_results_come_back(travel: Any, client: EmbeddingClient) -> None:
    index = Index.create(dimensions=16, fingerprint=FINGERPRINT)
    index.add(vectors(9), ids=list("abcdefghi"), metadata=[{"n": n} for n in range(9)], fingerprint=FINGERPRINT)
    matches = index.search_batch(vectors(4), 3)
    assert list(travel(matches)) == list(matches) and list(travel(matches)[1:]) == list(matches[1:])
    embeddings = client.embed(["a", "b"])
    np.testing.assert_array_equal(travel(embeddings).array, embeddings.array)
    assert travel(embeddings).fingerprint == embeddings.fingerprint
    (row,) = client.embed_many(["a"])
    np.testing.assert_array_equal(travel(row).embedding, row.embedding)
    assert travel(client.info()) == client.info() and travel(index.info) == index.info
    for value in (Retry(max_attempts=3), TLS(ca_file="a"), ItemError(1, "BAD", "x")):
        assert travel(value) == value
    assert vars(travel(Item(text="a", image=b"b", instruction="c"))) == vars(Item("a", b"b", "c"))


def errors() -> list[Exception]:
    """Return an error of every class."""
    made: list[Exception] = [InvalidInputError("bad", [ItemError(1, "BAD", "x")], code="INVALID_ITEMS")]
    rest = {*VlembedError.__subclasses__(), *InvalidInputError.__subclasses__(), VlembedError} - {InvalidInputError}
    return made + [kind("a message") for kind in sorted(rest, key=lambda kind: kind.__name__)]


@ways
@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_errors_come_back_whole(travel: Any, error: Exception) -> None:
    back = travel(error)
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
    assert not isinstance(error, MissingExtraError) or isinstance(back, ImportError)
