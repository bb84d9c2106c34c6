"""Pictures as they are shown, through a real server and both transports, with transformers as the judge."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from server.launch import TritonServer
from tests.reference import Reference
from tests.samples import data_uri, encode, image
from tests.wire import Wire
from vlembed import EmbeddingClient, InvalidInputError

pytestmark = pytest.mark.triton

COSINE = 0.9999  # float32 on both sides: rounding only


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(server: TritonServer, request: pytest.FixtureRequest) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(getattr(server, f"{request.param}_url")) as connected:
        yield connected


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


GREY = np.asarray(image(100, 70, "L"))
DEEP = Image.fromarray(GREY.astype(np.uint16) * 257)
HOLE = image(100, 70, "P")
JPEG = encode(image(100, 70), "JPEG")
FILES = {
    "deep PNG": (encode(DEEP), image(100, 70, "L")),
    "deep TIFF": (encode(DEEP, "TIFF"), image(100, 70, "L")),
    "grey with alpha": (encode(image(100, 70, "LA")), image(100, 70, "LA").convert("RGBA")),
    "transparent palette": (encode(HOLE, transparency=3), None),
    "transparent GIF": (encode(HOLE, "GIF", transparency=3), None),
    "turned JPEG": (encode(image(100, 70), "JPEG", exif=exif_of(6)), None),
    "turned PNG": (encode(image(100, 70), exif=exif_of(8)), image(100, 70).rotate(90, expand=True)),
    "turned WebP": (encode(image(100, 70), "WEBP", exif=exif_of(3), lossless=True), image(100, 70).rotate(180)),
    "AVIF": (encode(image(100, 70), "AVIF"), None),
    "JPEG and a video": (JPEG + b"\xff\xda\0\x02" * 100_000, Image.open(io.BytesIO(JPEG))),
    "JPEG without its end": (JPEG[:-2], Image.open(io.BytesIO(JPEG))),
    "wrong label": (data_uri(encode(image(100, 70)), "image/gif"), image(100, 70)),
}


def assert_same(ours: np.ndarray, theirs: list[np.ndarray]) -> None:
    cosines = (ours * np.asarray(theirs)).sum(-1)
    assert dict(zip(FILES, cosines >= COSINE, strict=True)) == dict.fromkeys(FILES, True)


def test_files_are_embedded_as_they_are_shown(client: EmbeddingClient, reference: Reference) -> None:
    pictures = [shown or Image.open(io.BytesIO(data)) for data, shown in FILES.values()]
    ours = client.embed([data for data, _ in FILES.values()])
    assert_same(ours.array, [reference.embed(image=picture) for picture in pictures])


def test_opened_files_are_the_files(client: EmbeddingClient) -> None:
    files = [data for name, (data, _) in FILES.items() if name not in ("wrong label", "JPEG without its end")]
    theirs = client.embed(files).array
    ours = client.embed([Image.open(io.BytesIO(data)) for data in files]).array
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_cut_picture_is_refused(client: EmbeddingClient) -> None:
    progressive = encode(image(100, 70), "JPEG", progressive=True)
    cut = [data[: len(data) * 2 // 3] + b"\xff\xd9" for data in (JPEG, progressive)]
    with pytest.raises(InvalidInputError) as caught:
        client.embed(["fine", *cut])
    assert [(item.index, item.code) for item in caught.value.items] == [(1, "IMAGE_TRUNCATED"), (2, "IMAGE_TRUNCATED")]


def ask_over_http(server: TritonServer, model: str, **body: Any) -> tuple[int, str]:
    inputs = [] if model == "info" else [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/infer", data=json.dumps({"inputs": inputs, **body}).encode()
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]


@pytest.mark.parametrize("model", ["embed", "embed_text", "info"])
def test_unknown_parameters_are_refused(server: TritonServer, model: str) -> None:
    for parameters in ({"dimensions": 64}, {"truncate": True}, {"nonsense": "x" * 100_000}):
        status, message = ask_over_http(server, model, parameters=parameters)
        assert status == 400
        assert "parameter" in message and len(message) < 600
        with pytest.raises(InferenceServerException) as caught:
            ask_over_grpc(server, model, parameters=parameters)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "parameter" in caught.value.message()


@pytest.mark.parametrize("model", ["embed", "embed_text"])
def test_what_triton_and_its_clients_send_is_no_parameter(server: TritonServer, model: str) -> None:
    own = {"binary_data_output": False, "priority": 1, "timeout": 10**9, "sequence_id": 7}
    assert ask_over_http(server, model, parameters=own, id="a request")[0] == 200
    ask_over_grpc(server, model, priority=1, timeout=10**9, sequence_id=7, request_id="x", headers={"x-tenant": "a"})


def ask_over_grpc(server: TritonServer, model: str, **options: Any) -> None:
    text = grpc.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"a"], np.object_))
    Wire(server.grpc_url).client.infer(model, [] if model == "info" else [text], **options)
