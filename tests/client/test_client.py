"""Calls as requests: order, models, options, what is refused and when, on a server in memory."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import INFO, MemoryTransport, vector
from tests.samples import encode, image
from vlembed import (
    ConnectError,
    EmbeddingClient,
    Embeddings,
    InvalidInputError,
    Item,
    ItemError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
)

BARRIER_TIMEOUT_S = 20
PNG = encode(image(32, 32))
TEXTS = [f"text {number}" for number in range(30)]


def expected(texts: list[str]) -> np.ndarray:
    return np.array([vector(text.encode()) for text in texts])


def sizes(memory: MemoryTransport) -> list[int]:
    return sorted(len(inputs["text"]) for _, inputs in memory.requests)


def test_one_row_for_each_item_in_order(client: EmbeddingClient, memory: MemoryTransport) -> None:
    ours = client.embed(TEXTS)
    np.testing.assert_array_equal(ours.array, expected(TEXTS))
    assert ours.text_tokens.tolist() == [len(text) for text in TEXTS]
    assert (ours.array.dtype, ours.text_tokens.dtype, ours.image_tokens.dtype) == (np.float32, np.int32, np.int32)
    assert ours.fingerprint == INFO["fingerprint"]
    assert sizes(memory) == [2] + 7 * [4]


def test_one_item_gives_one_row(client: EmbeddingClient) -> None:
    np.testing.assert_array_equal(client.embed("text").array, expected(["text"]))


def test_no_items_give_no_rows(client: EmbeddingClient, memory: MemoryTransport) -> None:
    assert client.embed([]).array.shape == (0, 8)
    assert client.embed([], dimensions=4).array.shape == (0, 4)
    assert not memory.requests


def test_models(client: EmbeddingClient, memory: MemoryTransport) -> None:
    client.embed(["a", "b"], max_pixels=4096)
    client.embed(["a", PNG, Item(text="both", image=PNG)], max_pixels=4096)
    (text_model, text_inputs), (model, inputs) = memory.requests
    assert (text_model, model) == ("embed_text", "embed")
    assert set(text_inputs) == {"text"}
    assert inputs["text"].tolist() == [b"a", b"", b"both"]
    assert inputs["image"].tolist() == [b"", PNG, PNG]
    assert inputs["max_pixels"].tolist() == [4096]


def test_an_empty_text_is_never_beside_an_image(client: EmbeddingClient, memory: MemoryTransport) -> None:
    client.embed(["", PNG, "", "a"])
    assert sorted(model for model, _ in memory.requests) == ["embed", "embed_text", "embed_text"]


def test_options_are_tensors(client: EmbeddingClient, memory: MemoryTransport) -> None:
    assert client.embed("a", dimensions=4, truncate=True).array.shape == (1, 4)
    client.embed("a")
    (_, inputs), (_, plain) = memory.requests
    assert (inputs["dimensions"].dtype, inputs["dimensions"].tolist()) == (np.int32, [4])
    assert (inputs["truncate"].dtype, inputs["truncate"].tolist()) == (np.bool_, [True])
    assert set(plain) == {"text"}


def test_instructions(client: EmbeddingClient, memory: MemoryTransport) -> None:
    client.embed(["a", "b"], instruction="Find")
    client.embed(["a", Item(text="b", instruction="Own")], instruction="Find")
    client.embed_query(["a", "b"])
    client.embed_query("a", "Find")
    client.embed_document("a", dimensions=4)
    sent = [inputs["instruction"].tolist() if "instruction" in inputs else None for _, inputs in memory.requests]
    query = b"Retrieve images or text relevant to the user's query."
    assert sent == [[b"Find"], [b"Find", b"Own"], [query], [b"Find"], None]


def test_requests_are_in_flight_together(memory: MemoryTransport) -> None:
    together = threading.Barrier(3)
    memory.before_answer = lambda: together.wait(BARRIER_TIMEOUT_S)
    with EmbeddingClient("memory", transport=memory, concurrency=3) as client:
        ours = client.embed(TEXTS[:24])  # 6 packs, which only pass three at a time
    np.testing.assert_array_equal(ours.array, expected(TEXTS[:24]))


def test_threads_share_a_client(client: EmbeddingClient) -> None:
    results: dict[int, Embeddings] = {}

    def work(number: int) -> None:
        results[number] = client.embed(TEXTS[number:])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        np.testing.assert_array_equal(results[number].array, expected(TEXTS[number:]))


# --- too large packs ---


@pytest.mark.parametrize("max_items", [1, 2, 3])
def test_too_large_packs_are_halved(max_items: int) -> None:
    memory = MemoryTransport(max_items)
    with EmbeddingClient("memory", transport=memory) as client:
        np.testing.assert_array_equal(client.embed(TEXTS).array, expected(TEXTS))
        texts = [*TEXTS[:5], "bad", *TEXTS[:5], "bad"]
        with pytest.raises(InvalidInputError) as caught:
            client.embed(texts)
    assert [item.index for item in caught.value.items] == [5, 11]


def test_an_item_that_is_too_large_alone_is_named() -> None:
    with (
        EmbeddingClient("memory", transport=MemoryTransport(max_items=0)) as client,
        pytest.raises(InvalidInputError) as caught,
    ):
        client.embed(["a", "b"])
    assert [(item.index, item.code) for item in caught.value.items] == [(0, "PACK_TOO_LARGE"), (1, "PACK_TOO_LARGE")]


# --- bad input ---


def test_bad_items_of_all_packs_are_told(client: EmbeddingClient, memory: MemoryTransport) -> None:
    texts = ["bad" if number % 7 == 3 else text for number, text in enumerate(TEXTS)]
    with pytest.raises(InvalidInputError, match=r"^item 3 of 30: item 3 is bad \(and 3 more\)$") as caught:
        client.embed(texts)
    assert [(item.index, item.code) for item in caught.value.items] == [(i, "BAD") for i in (3, 10, 17, 24)]
    assert len(memory.requests) == 8


@pytest.mark.parametrize(
    ("items", "options"),
    [
        (["a", 3], {}),
        (["a", "a" * 5001], {}),
        (["a", b"x" * 20_000], {}),
        (["a"], {"instruction": "a" * 5001}),
        (["a"], {"instruction": 3}),
        (["a"], {"dimensions": 3}),
        (["a"], {"dimensions": 9}),
        (["a"], {"dimensions": True}),
        (["a"], {"dimensions": 4.0}),
        ([PNG], {"max_pixels": 4095}),
        ([PNG], {"max_pixels": 2**40}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_nothing_is_sent_that_the_client_can_refuse(
    client: EmbeddingClient, memory: MemoryTransport, items: list[Any], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError):
        client.embed(items, **options)
    assert not memory.requests


@pytest.mark.parametrize(
    "arguments",
    [*({"timeout_s": value} for value in (0, -1, math.inf, math.nan, "5")), {"concurrency": 0}, {"concurrency": 1.5}],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        EmbeddingClient("grpc://127.0.0.1:1", **arguments)


def test_the_first_error_of_another_kind_is_raised(client: EmbeddingClient, memory: MemoryTransport) -> None:
    def fail() -> None:
        raise ServerError("failed")

    memory.before_answer = fail
    with pytest.raises(ServerError, match="failed"):
        client.embed(TEXTS)


# --- answers that are none ---


class Answering(MemoryTransport):
    """Answers of `MemoryTransport` with some tensors replaced."""

    def __init__(self, **tensors: np.ndarray) -> None:
        super().__init__()
        self.tensors = tensors

    def infer(self, model: str, *arguments: Any) -> dict[str, np.ndarray]:
        answer = super().infer(model, *arguments)
        return answer | {name: value for name, value in self.tensors.items() if name in answer}


def info_without(name: str) -> np.ndarray:
    return np.array([json.dumps({key: value for key, value in INFO.items() if key != name}).encode()], np.object_)


@pytest.mark.parametrize(
    "tensors",
    [
        {"embedding": np.zeros((1, 8), np.float32)},
        {"embedding": np.zeros((2, 7), np.float32)},
        {"embedding": np.zeros((2, 8))},
        {"embedding": np.full((2, 8), np.nan, np.float32)},
        {"text_tokens": np.zeros(3, np.int32)},
        {"image_tokens": np.zeros((2, 1), np.int32)},
        {"info": np.zeros(1, np.float32)},
        {"info": np.array([b"{"], np.object_)},
        {"info": np.array([b"[]"], np.object_)},
        {"info": np.array([b"\xff"], np.object_)},
        *({"info": info_without(name)} for name in ("fingerprint", "dimensions", "bounds")),
        {"info": np.array([json.dumps(INFO | {"bounds": {"max_items": 4}}).encode()], np.object_)},
    ],
    ids=lambda tensors: next(iter(tensors)),
)
def test_wrong_answers(tensors: dict[str, np.ndarray]) -> None:
    with EmbeddingClient("memory", transport=Answering(**tensors)) as client, pytest.raises(ProtocolError):
        client.embed(["a", "b"])


def test_bad_items_that_were_not_sent_are_not_told(client: EmbeddingClient, memory: MemoryTransport) -> None:
    def fail() -> None:
        raise InvalidInputError("odd", [ItemError(5, "ODD", "odd")], code="INVALID_ITEMS")

    memory.before_answer = fail
    with pytest.raises(InvalidInputError, match=r"^odd$"):
        client.embed("a")


# --- similarity, readiness ---


def test_similarity_of_items_and_vectors(client: EmbeddingClient, memory: MemoryTransport) -> None:
    theirs = client.similarity(TEXTS[:2], TEXTS[2:5])
    assert theirs.shape == (2, 3)
    embeddings = client.embed(TEXTS[2:5])
    for vectors in (embeddings, embeddings.array):
        memory.requests.clear()
        np.testing.assert_array_equal(client.similarity(TEXTS[:2], vectors), theirs)
        assert len(memory.requests) == 1
    np.testing.assert_allclose(client.similarity("text", "text"), [[1]], atol=1e-6)
    assert client.similarity(TEXTS[:3], embeddings, metric="manhattan", pairwise=True).shape == (3,)
    memory.requests.clear()
    client.similarity("a", PNG, instruction="Find", dimensions=4)
    assert [inputs["instruction"].tolist() for _, inputs in memory.requests] == [[b"Find"]] * 2
    assert [inputs["dimensions"].tolist() for _, inputs in memory.requests] == [[4]] * 2


def test_info_is_asked_once() -> None:
    asked = []

    class Counting(MemoryTransport):
        def infer(self, model: str, *arguments: Any) -> dict[str, np.ndarray]:
            asked.append(model)
            return super().infer(model, *arguments)

    with EmbeddingClient("memory", transport=Counting()) as client:
        assert client.info().bounds["max_items"] == 4
        client.embed("a")
    assert asked == ["info", "embed_text"]


def test_waiting_goes_on_until_ready() -> None:
    answers = [ConnectError("refused"), RequestTimeoutError("slow"), False, True]

    class Starting(MemoryTransport):
        def is_ready(self, timeout_s: float) -> bool:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    with EmbeddingClient("memory", transport=Starting()) as client:
        client.wait_until_ready()
    assert not answers


def test_waiting_ends_with_the_reason() -> None:
    class Down(MemoryTransport):
        def is_ready(self, timeout_s: float) -> bool:
            raise ConnectError("connection refused")

    with (
        EmbeddingClient("memory", transport=Down()) as client,
        pytest.raises(RequestTimeoutError, match=r"memory was not ready within 0\.1 s: connection refused"),
    ):
        client.wait_until_ready(timeout_s=0.1)
