"""The whole path: a real server, real clients, and transformers as the judge of every vector."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from export.checkpoint import Checkpoint
from server.launch import TritonServer
from tests.conftest import ARCHITECTURES
from tests.reference import Reference
from tests.samples import INSTRUCTIONS, MODES, TEXTS, data_uri, encode, image
from tests.wire import Wire
from vlembed import EmbeddingClient, Item

pytestmark = pytest.mark.triton

COSINE = 0.9999  # float32 on both sides: rounding only
LENGTHS = [1, 2, 10, 100, 500, 2000]  # tokens
SCRIPTS = {"Latin": "cat sofa ", "Chinese": "猫睡觉", "Arabic": "قطة تنام ", "emoji": "🐱🚀"}
PNG = encode(image(96, 64))


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(server: TritonServer, request: pytest.FixtureRequest) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(getattr(server, f"{request.param}_url")) as connected:
        yield connected


@pytest.fixture(scope="module")
def wire(server: TritonServer) -> Wire:
    return Wire(server.grpc_url)


def assert_same(ours: np.ndarray, theirs: np.ndarray | list[np.ndarray]) -> None:
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), 1, atol=1e-5)
    assert (ours * theirs).sum(-1).min() >= COSINE


# --- ours against theirs ---


def text_of(reference: Reference, script: str, num_tokens: int) -> str:
    """Return a text that makes about `num_tokens` tokens."""
    ids = reference.tokenizer(SCRIPTS[script] * num_tokens, add_special_tokens=False)["input_ids"][:num_tokens]
    return str(reference.tokenizer.decode(ids)).replace("\ufffd", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_of_every_length(client: EmbeddingClient, reference: Reference, script: str) -> None:
    texts = [text_of(reference, script, length) for length in LENGTHS]
    ours = client.embed(texts)
    assert_same(ours.array, [reference.embed(text) for text in texts])
    assert ours.text_tokens.tolist() == [len(reference.input_ids(text)) for text in texts]
    assert ours.image_tokens.tolist() == [0] * len(texts)


def test_the_longest_text(client: EmbeddingClient, reference: Reference) -> None:
    text = text_of(reference, "Latin", 8000)
    assert_same(client.embed(text).array, [reference.embed(text)])


def test_instructions(client: EmbeddingClient, reference: Reference) -> None:
    texts = list(TEXTS.values())
    for instruction in INSTRUCTIONS:
        ours = client.embed(texts, instruction=instruction)
        assert_same(ours.array, [reference.embed(text, instruction=instruction) for text in texts])


def test_images_of_every_mode(client: EmbeddingClient, reference: Reference) -> None:
    pictures = [image(100, 70, mode, seed) for seed, mode in enumerate(MODES)]
    data = [encode(picture, "TIFF" if picture.mode == "CMYK" else "PNG") for picture in pictures]
    assert_same(client.embed(data).array, [reference.embed(image=picture) for picture in pictures])


@pytest.mark.parametrize("size", [(16, 16), (640, 480), (40, 2000), (1920, 1080)], ids=str)
def test_images_of_many_sizes(client: EmbeddingClient, reference: Reference, size: tuple[int, int]) -> None:
    picture = image(*size)
    assert_same(client.embed(encode(picture)).array, [reference.embed(image=picture)])


def test_mixed_pack(client: EmbeddingClient, reference: Reference) -> None:
    first, second = image(64, 64, seed=1), image(320, 96, seed=2)
    items = ["text", Item(text="both", image=encode(first)), encode(second), Item(text="why?", instruction="Find it")]
    theirs = [
        reference.embed("text"),
        reference.embed("both", first),
        reference.embed(image=second),
        reference.embed("why?", instruction="Find it"),
    ]
    ours = client.embed(items)
    assert_same(ours.array, theirs)
    assert ours.image_tokens.tolist() == [0, 4, 30, 0]


@pytest.mark.parametrize("dimensions", [64, 100, 128])
def test_matryoshka_dimensions(client: EmbeddingClient, reference: Reference, dimensions: int) -> None:
    theirs = [reference.embed("text", dimensions=dimensions), reference.embed(image=image(), dimensions=dimensions)]
    assert_same(client.embed(["text", PNG], dimensions=dimensions).array, theirs)


def test_max_pixels(client: EmbeddingClient, reference: Reference) -> None:
    picture = image(640, 480)
    ours = client.embed(encode(picture), max_pixels=65_536)
    assert_same(ours.array, [reference.embed(image=picture, max_pixels=65_536)])
    assert ours.image_tokens.tolist() == [54]


@pytest.mark.parametrize("size", [size for size in ARCHITECTURES if size != "tiny"])
def test_other_architectures(
    size: str, checkpoint_of: Callable[[str], Checkpoint], repository_of: Callable[[str], Path]
) -> None:
    reference = Reference(checkpoint_of(size))
    with TritonServer(repository_of(size)) as server, EmbeddingClient(server.grpc_url) as client:
        items = [*TEXTS.values(), PNG, Item(text="a cat", image=PNG)]
        theirs = [reference.embed(text) for text in TEXTS.values()]
        theirs += [reference.embed(image=image(96, 64)), reference.embed("a cat", image(96, 64))]
        assert_same(client.embed(items).array, theirs)


# --- what embeddings promise ---


def test_alone_in_a_pack_and_in_a_crowd(server: TritonServer, reference: Reference) -> None:
    pictures = [image(32 * n, 64, seed=n) for n in range(1, 5)]
    items = [*TEXTS.values(), *(encode(picture) for picture in pictures), Item(text="both", image=PNG)]
    with EmbeddingClient(server.grpc_url) as client:
        alone = np.concatenate([client.embed(item).array for item in items])
        assert_same(client.embed(items).array, alone)
    theirs = [reference.embed(text) for text in TEXTS.values()]
    theirs += [reference.embed(image=picture) for picture in pictures]
    assert_same(alone, [*theirs, reference.embed("both", image(96, 64))])

    def one_of_a_crowd(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(items))
        with EmbeddingClient(server.grpc_url if seed % 2 else server.http_url) as client:
            assert_same(client.embed([items[i] for i in order]).array, alone[order])
            for i in order[:4]:
                assert_same(client.embed(items[i]).array, alone[[i]])

    with ThreadPoolExecutor(32) as pool:
        for future in [pool.submit(one_of_a_crowd, seed) for seed in range(32)]:
            future.result()


def test_embed_and_embed_text_agree(wire: Wire) -> None:
    text = [text.encode() for text in TEXTS.values()]
    ours, theirs = wire.embed("embed", text=text), wire.embed("embed_text", text=text)
    assert_same(ours["embedding"], theirs["embedding"])
    np.testing.assert_array_equal(ours["text_tokens"], theirs["text_tokens"])


def test_all_spellings_of_an_image_agree(client: EmbeddingClient, wire: Wire, tmp_path: Path) -> None:
    picture = image(96, 64)
    (tmp_path / "picture.png").write_bytes(PNG)
    ours = client.embed([tmp_path / "picture.png", PNG, picture, np.asarray(picture), Item(image=PNG), data_uri(PNG)])
    sent = wire.embed(image=[data_uri(PNG)])["embedding"]
    assert_same(ours.array, np.repeat(sent, 6, axis=0))


def test_empty_text_beside_an_image_is_no_text(wire: Wire) -> None:
    ours = wire.embed(text=[b"", b"a cat"], image=[PNG, b""])["embedding"]
    theirs = [wire.embed(image=[PNG])["embedding"][0], wire.embed(text=[b"a cat"])["embedding"][0]]
    assert_same(ours, theirs)


def test_info(client: EmbeddingClient, checkpoint: Checkpoint) -> None:
    info = client.info()
    assert (info.checkpoint, info.dimensions) == (checkpoint.name, checkpoint.hidden_size)
    assert info.bounds["max_items"] == 64
    assert client.embed("a cat").fingerprint == info.fingerprint


def test_truncation_only_on_request(client: EmbeddingClient) -> None:
    text = "cat " * 9000
    with pytest.raises(ValueError, match="the server takes 8192"):
        client.embed(text)
    cut = client.embed(text, truncate=True)
    assert cut.text_tokens.tolist() == [8192]
    endless = "cat " * 1_000_000  # more than `max_text_bytes`
    assert_same(client.embed(endless, truncate=True).array, cut.array)
    with pytest.raises(ValueError, match="4000000 bytes; the server takes 262144"):
        client.embed(endless)


# --- bad input ---

BIG = encode(image(1300, 1300), "JPEG")
BAD_REQUESTS: dict[str, tuple[dict[str, Any], list[tuple[int, str]], str]] = {
    "different n": ({"text": [b"a", b"b"], "image": [PNG]}, [], "text has 2 entries and image has 1"),
    "empty image, no text": ({"text": [b"a", b""], "image": [PNG, b""]}, [(1, "ITEM_EMPTY")], "item 1 of 2"),
    "undecodable": ({"image": [PNG, b"%PDF-1.7"]}, [(1, "IMAGE_UNDECODABLE")], "%PDF"),
    "truncated": ({"image": [PNG[:900]]}, [(0, "IMAGE_TRUNCATED")], "truncated"),
    "URL": ({"image": [b"http://169.254.169.254/latest"]}, [(0, "IMAGE_IS_URL")], "fetches nothing"),
    "floats": ({"image": [encode(image(9, 9, "L").convert("F"), "TIFF")]}, [(0, "IMAGE_NO_RANGE")], "floats"),
    "a HEIC": ({"image": [b"\0\0\0\x18ftypheic" + bytes(99)]}, [(0, "IMAGE_UNDECODABLE")], "a HEIC"),
    "bare base64": ({"image": [data_uri(PNG)[22:]]}, [(0, "IMAGE_UNDECODABLE")], "is base64 text"),
    "ratio": ({"image": [encode(image(402, 2))]}, [(0, "IMAGE_RATIO")], "402 x 2"),
    "too many bytes": ({"image": [b"\0" * 20_971_521]}, [(0, "IMAGE_TOO_LARGE")], "20971521"),
    "not UTF-8": ({"text": [b"fine", b"caf\xe9"]}, [(1, "TEXT_NOT_UTF8")], "UTF-8"),
    "instruction": ({"text": [b"a"], "instruction": [b"cat " * 9000]}, [(0, "INSTRUCTION_TOO_LONG")], "shorten it"),
    "over-long": ({"text": [b"cat " * 9000]}, [(0, "TEXT_TOO_LONG")], "8192"),
    "dimensions": ({"text": [b"a"], "dimensions": 129}, [], "64 to 128"),
    "max_pixels": ({"image": [PNG], "max_pixels": 1}, [], "4096 to 1843200"),
    "too many items": ({"text": [b"a"] * 65}, [], "65 items"),
    "too many visual tokens": ({"image": [BIG] * 3}, [], "visual tokens"),
    "several": (
        {"text": [b"\xff", b"ok", b""], "image": [b"", b"", b"GIF89a"]},
        [(0, "TEXT_NOT_UTF8"), (2, "IMAGE_UNDECODABLE")],
        "and 1 more",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(wire: Wire, name: str) -> None:
    tensors, bad_items, says = BAD_REQUESTS[name]
    with pytest.raises(InferenceServerException) as caught:
        wire.embed(**tensors)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    line, _, details = caught.value.message().partition("\n")
    assert says in line
    assert [(item["index"], item["code"]) for item in json.loads(details)["items"]] == bad_items


def test_no_input_at_all(wire: Wire) -> None:
    with pytest.raises(InferenceServerException) as caught:
        wire.embed(dimensions=64)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "neither text nor image" in caught.value.message()


def test_a_pack_of_bad_items_is_told_to_any_client(wire: Wire) -> None:
    """Sixty-four long messages would be more metadata than gRPC takes by default."""
    with pytest.raises(InferenceServerException) as caught:
        wire.embed(image=[b"%PDF \xff\xff"] * 64)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    items = json.loads(caught.value.message().partition("\n")[2])["items"]
    assert [(item["index"], item["code"]) for item in items] == [(i, "IMAGE_UNDECODABLE") for i in range(64)]
    assert "%PDF" in items[0]["message"]


@pytest.mark.parametrize("output", ["embedding", "text_tokens", "image_tokens"])
def test_any_output_alone(wire: Wire, output: str) -> None:
    for model in ("embed", "embed_text"):
        outputs = wire.infer(model, {"text": np.array([b"a", b"b"], np.object_)}, [output])
        assert list(outputs) == [output]
        assert len(outputs[output]) == 2


def test_bad_requests_harm_nobody(server: TritonServer, wire: Wire) -> None:
    """Send every bad request again and again among good ones; the good ones stay exact."""
    good = {"text": [b"a cat", b""], "image": [b"", PNG]}
    expected = wire.embed(**good)["embedding"]
    stop = threading.Event()

    def misbehave() -> None:
        own = Wire(server.grpc_url)
        while not stop.is_set():
            for tensors, _, _ in BAD_REQUESTS.values():
                with pytest.raises(InferenceServerException):
                    own.embed(**tensors)

    with ThreadPoolExecutor(12) as pool:
        bad = [pool.submit(misbehave) for _ in range(4)]
        try:
            for result in [pool.submit(wire.embed, **good) for _ in range(100)]:
                assert_same(result.result()["embedding"], expected)
        finally:
            stop.set()
        for future in bad:
            future.result()


# --- the steps, called directly with tensors that contradict each other ---


def step_tensors(wire: Wire) -> dict[str, np.ndarray]:
    """Return what preprocess makes of a good request."""
    tensors = {"text": np.array([b"a cat", b"a dog"], np.object_), "image": np.array([PNG, b""], np.object_)}
    return wire.infer("preprocess", tensors, ["input_ids", "position_ids", "lengths", "patches", "grid_thw"])


def language_inputs(tensors: dict[str, np.ndarray], image_embeds: np.ndarray) -> dict[str, np.ndarray]:
    return {name: tensors[name] for name in ("input_ids", "position_ids", "lengths")} | {"image_embeds": image_embeds}


def test_inconsistent_tensors_get_nan_or_an_error_and_harm_nobody(server: TritonServer, wire: Wire) -> None:
    tensors = step_tensors(wire)
    vision = {name: tensors[name] for name in ("patches", "grid_thw")}
    image_embeds = wire.infer("vision_encoder", vision)["image_embeds"]
    language = language_inputs(tensors, image_embeds)
    good_vision, good_language = image_embeds, wire.infer("language_model", language)["pooled"]
    assert np.isfinite(good_vision).all() and np.isfinite(good_language).all()
    lies = [
        ("vision_encoder", {**vision, "grid_thw": vision["grid_thw"] + 2}),
        ("vision_encoder", {**vision, "patches": vision["patches"][:, :-1]}),
        ("language_model", {**language, "lengths": language["lengths"] + 1}),
        ("language_model", {**language, "lengths": language["lengths"][:, :1]}),
        ("language_model", {**language, "input_ids": language["input_ids"][:, :-3]}),
        ("language_model", {**language, "position_ids": language["position_ids"][:, 1:]}),
        ("language_model", {**language, "image_embeds": image_embeds[:, 1:]}),
    ]

    def lie(model: str, inputs: dict[str, np.ndarray]) -> None:
        (output,) = Wire(server.grpc_url).infer(model, inputs).values()
        assert np.isnan(output).all()

    def tell_the_truth(model: str, inputs: dict[str, np.ndarray], expected: np.ndarray) -> None:
        (output,) = Wire(server.grpc_url).infer(model, inputs).values()
        np.testing.assert_allclose(output, expected, atol=1e-4)

    with ThreadPoolExecutor(16) as pool:
        futures = []
        for _ in range(6):
            futures += [pool.submit(lie, *a_lie) for a_lie in lies]
            futures.append(pool.submit(tell_the_truth, "vision_encoder", vision, good_vision))
            futures.append(pool.submit(tell_the_truth, "language_model", language, good_language))
        for future in futures:
            future.result()


@pytest.mark.parametrize("empty", ["input_ids", "position_ids", "lengths", "image_embeds"])
def test_empty_ragged_tensors_are_refused(wire: Wire, empty: str) -> None:
    tensors = step_tensors(wire)
    language = language_inputs(
        tensors, wire.infer("vision_encoder", {k: tensors[k] for k in ("patches", "grid_thw")})["image_embeds"]
    )
    language[empty] = language[empty][:, :0]
    with pytest.raises(InferenceServerException) as caught:
        wire.infer("language_model", language)
    assert empty in caught.value.message()


def test_pooling_refuses_what_is_not_finite(wire: Wire) -> None:
    pooled, counts = np.full((1, 2, 128), np.nan, np.float32), np.ones(2, np.int32)
    with pytest.raises(InferenceServerException, match=r"no finite hidden state for items \[0, 1\]"):
        wire.infer("pooling", {"pooled": pooled, "num_text_tokens": counts, "num_image_tokens": counts})
