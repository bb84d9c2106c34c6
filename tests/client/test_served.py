"""The client through a real server, over both protocols; tests/test_end_to_end.py judges the vectors themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from tests.samples import encode, image
from vlembed import EmbeddingClient, Embeddings, InvalidInputError, Item, ServerError
from vlembed._items import prepare
from vlembed._packing import cost_of

pytestmark = pytest.mark.triton

COSINE = 0.9999  # the promise of batch invariance
PNG = encode(image(96, 64))


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(server: TritonServer, request: pytest.FixtureRequest) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(getattr(server, f"{request.param}_url")) as connected:
        connected.wait_until_ready()
        yield connected


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert (ours * theirs).sum(-1).min() >= COSINE


def test_every_spelling_gives_one_vector(client: EmbeddingClient, tmp_path: Path) -> None:
    picture = image(96, 64)
    (tmp_path / "a.png").write_bytes(PNG)
    ours = client.embed([PNG, tmp_path / "a.png", picture, np.asarray(picture), Item(image=PNG), Item("", PNG)])
    np.testing.assert_array_equal(ours.array, np.repeat(ours.array[:1], 6, axis=0))
    assert ours.image_tokens.tolist() == [6] * 6


def test_work_of_many_packs(client: EmbeddingClient) -> None:
    texts = [f"text {number} " * (number % 40 + 1) for number in range(150)]
    items = [*texts[:70], *[image(700, 700, seed=seed) for seed in range(12)], "", *texts[70:]]
    ours = client.embed(items)
    order = np.random.default_rng(0).permutation(len(items))
    assert_same(client.embed([items[i] for i in order]).array, ours.array[order])
    assert ours.image_tokens.nonzero()[0].tolist() == list(range(70, 82))


def test_estimates_bound_what_is_counted(client: EmbeddingClient) -> None:
    items = ["", "a", "猫" * 50, "🐱" * 50, "word " * 100, PNG, image(640, 480), Item(text="why?", image=PNG)]
    for instruction in (None, "Find the cat on the sofa."):
        ours = client.embed(items, instruction=instruction)
        bounds = client.info().bounds
        prepared = prepare(items, instruction=instruction, allow_reference_text=False)
        costs = [cost_of(item, bounds, None) for item in prepared]
        assert ours.image_tokens.tolist() == [cost.image_tokens for cost in costs]
        assert (ours.text_tokens + ours.image_tokens <= [cost.tokens for cost in costs]).all()


def test_packs_that_the_server_finds_too_large(server: TritonServer) -> None:
    """Believe that the server takes more than it does."""
    with EmbeddingClient(server.grpc_url) as client, EmbeddingClient(server.http_url) as believing:
        bounds = believing.info().bounds
        assert isinstance(bounds, dict)
        bounds |= {"max_items": 1000, "max_pack_tokens": 10**9, "max_pack_image_tokens": 10**9}
        bounds |= {"max_pack_pixels": 10**12, "max_pack_text_bytes": 10**9}
        items = [*[f"text {number}" for number in range(130)], *[image(700, 700, seed=seed) for seed in range(12)]]
        assert_same(believing.embed(items).array, client.embed(items).array)


def test_bad_items_of_all_packs(client: EmbeddingClient) -> None:
    bad = {3: b"%PDF", 64: PNG[:900], 100: b"GIF89a", 139: b"https://example.com/cat.png"}
    items = [bad.get(number, f"text {number}") for number in range(140)]
    with pytest.raises(InvalidInputError, match=r"^item 3 of 140: image is a PDF .* \(and 3 more\)$") as caught:
        client.embed(items)
    codes = ["IMAGE_UNDECODABLE", "IMAGE_TRUNCATED", "IMAGE_UNDECODABLE", "IMAGE_IS_URL"]
    assert [(item.index, item.code) for item in caught.value.items] == list(zip(bad, codes, strict=True))


def test_a_whole_pack_of_bad_items_is_told(client: EmbeddingClient) -> None:
    items = [Item(text="猫" * 9000 + str(number)) for number in range(64)]
    with pytest.raises(InvalidInputError) as caught:
        client.embed([*items, *[b"\xff" * 8] * 64])
    assert [item.index for item in caught.value.items] == list(range(128))


def test_what_only_the_server_knows_of_options(client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match="truncate"):
        client.embed(["fine", "cat " * 9000])
    assert client.embed(["fine", "cat " * 9000], truncate=True).text_tokens[1] == client.info().bounds["max_tokens"]


def test_queries_and_documents(client: EmbeddingClient) -> None:
    document, query = client.embed_document("a cat"), client.embed_query("a cat")
    assert document.text_tokens[0] < query.text_tokens[0]
    np.testing.assert_array_equal(document.array, client.embed("a cat").array)
    assert client.similarity(query, ["a cat", PNG]).shape == (1, 2)
    assert client.similarity("a cat", document)[0, 0] == pytest.approx(1, abs=1e-5)


def test_threads_share_a_client(client: EmbeddingClient) -> None:
    items = [*[f"text {number}" for number in range(80)], PNG]
    theirs = client.embed(items).array
    results: dict[int, Embeddings] = {}

    def work(number: int) -> None:
        results[number] = client.embed(items[number:])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(16):
        assert_same(results[number].array, theirs[number:])


def test_info_of_both_protocols(server: TritonServer) -> None:
    with EmbeddingClient(server.grpc_url) as one, EmbeddingClient(server.http_url) as other:
        assert one.info() == other.info()


def test_a_request_that_triton_refuses_itself(client: EmbeddingClient) -> None:
    transport = client._transport
    with pytest.raises(ServerError, match="unknown model"):
        transport.infer("nothing", {}, ("info",), 10)
    with pytest.raises(ServerError, match=r"unexpected inference (input|output)"):
        transport.infer("info", {}, ("embedding",), 10)
