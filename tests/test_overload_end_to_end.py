"""Expensive requests at a real server: refused before they cost, while their neighbours' vectors stay the same."""

from __future__ import annotations

import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from server.launch import TritonServer
from tests.samples import encode, image
from tests.wire import Wire
from vlembed import EmbeddingClient

pytestmark = pytest.mark.triton

PATIENCE_S = 60.0


def counters(server: TritonServer) -> dict[str, float]:
    """Return the step's own metrics, added up over its processes by Triton."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['metrics']}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = (re.fullmatch(r"vlembed_preprocess_(\S+) (\S+)", line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


def test_a_pack_of_many_pixels_is_refused_and_a_bystander_is_served(server: TritonServer) -> None:
    wire = Wire(server.grpc_url)
    alone = wire.embed("embed_text", text=[b"Two cats."])["embedding"]
    bomb = encode(Image.new("L", (8191, 8191)), "PNG")
    before = counters(server)
    with ThreadPoolExecutor(4) as pool:
        bombs = [pool.submit(wire.embed, image=[bomb] * 64, max_pixels=4096) for _ in range(4)]
        vectors = [wire.embed("embed_text", text=[b"Two cats."])["embedding"] for _ in range(5)]
        for refused in bombs:
            with pytest.raises(InferenceServerException, match="pixels to decode; the server takes 134217728"):
                refused.result()
    np.testing.assert_allclose(np.stack(vectors), np.stack([alone] * 5), atol=1e-5)
    after = counters(server)
    assert after.get('images_total{format="PNG"}', 0) == before.get('images_total{format="PNG"}', 0)
    name = 'refusals_total{code="PACK_TOO_LARGE"}'
    assert after[name] == before.get(name, 0) + 4


def test_the_client_splits_by_pixels(server: TritonServer) -> None:
    large = encode(Image.new("L", (4000, 3000), 90), "JPEG")
    name = 'refusals_total{code="PACK_TOO_LARGE"}'
    before = counters(server)
    with EmbeddingClient(server.grpc_url) as client:
        embeddings = client.embed([large] * 13, max_pixels=4096)
    assert embeddings.array.shape[0] == 13
    np.testing.assert_allclose(embeddings.array, np.repeat(embeddings.array[:1], 13, 0), atol=1e-5)
    after = counters(server)
    assert after.get(name, 0) == before.get(name, 0)
    assert after['images_total{format="JPEG"}'] == before.get('images_total{format="JPEG"}', 0) + 13
    assert after['image_seconds_total{format="JPEG"}'] > before.get('image_seconds_total{format="JPEG"}', 0)


def test_a_pack_whose_caller_has_gone_is_dropped(server: TritonServer) -> None:
    """Far more is asked for than is done before the caller goes."""
    connection = grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    data = encode(image(1500, 1300))
    before = counters(server)
    images = grpc.InferInput("image", [64], "BYTES")
    images.set_data_from_numpy(np.array([data] * 64, np.object_))
    budget = grpc.InferInput("max_pixels", [1], "INT32")
    budget.set_data_from_numpy(np.array([4096], np.int32))
    call = connection.async_infer("preprocess", [images, budget], lambda result, error: None)
    deadline = time.monotonic() + PATIENCE_S
    name = 'images_total{format="PNG"}'
    while counters(server).get(name, 0) == before.get(name, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    call.cancel()
    while counters(server).get("dropped_total", 0) == before.get("dropped_total", 0) and time.monotonic() < deadline:
        time.sleep(0.1)
    after = counters(server)
    assert after.get("dropped_total", 0) == before.get("dropped_total", 0) + 1
    assert after[name] - before.get(name, 0) < 64
