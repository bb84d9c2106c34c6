"""Requests that are large, long or deep: the server answers them rightly or refuses them, and serves on."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from server.launch import TritonServer
from server.stack import STACK_BYTES
from tests.wire import Wire

ROOT = Path(__file__).resolve().parents[2]
TEXT = "a red apple"
FORM = "application/x-www-form-urlencoded"  # as curl sends what its -d is given
JSON = "application/json"
NUM_CHUNKS = 600_000
DEPTH = 100_000
MAX_IMAGE_BYTES = 20_971_520
ATOL = 1e-6  # JSON carries float32 exactly; a dynamic batch may round differently


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as running:  # of its own: if it dies, other tests do not
        yield running


@pytest.fixture(scope="module")
def vector(server: TritonServer) -> np.ndarray:
    return Wire(server.grpc_url).embed("embed_text", text=[TEXT.encode()])["embedding"]


@pytest.fixture
def survivor(server: TritonServer, vector: np.ndarray) -> Iterator[TritonServer]:
    """Return a server that must answer as before when the test is over."""
    yield server
    status, answer = post(server, text_body(TEXT))
    assert status == 200
    np.testing.assert_allclose(embedding(answer), vector, atol=ATOL)


def text_body(*texts: str) -> bytes:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]
    return json.dumps({"inputs": inputs}).encode()


def post(
    server: TritonServer, body: bytes, model: str = "embed_text", content_type: str = JSON
) -> tuple[int, dict[str, object]]:
    connection = HTTPConnection("127.0.0.1", server.ports["http"])
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def embedding(answer: dict[str, object]) -> np.ndarray:
    (output,) = (output for output in answer["outputs"] if output["name"] == "embedding")
    return np.array(output["data"], np.float32).reshape(output["shape"])


def bitmap(width: int, height: int) -> bytes:
    """Return an image of three bytes a pixel, which do not shrink when it is encoded."""
    file = io.BytesIO()
    ramp = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) // 5000
    Image.fromarray(ramp.astype(np.uint8)).save(file, "BMP")
    return file.getvalue()


def image_body(image: bytes) -> bytes:
    uri = "data:image/bmp;base64," + base64.b64encode(image).decode()
    return json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [uri]}]}).encode()


@pytest.mark.triton
@pytest.mark.parametrize("content_type", [FORM, JSON], ids=["form", "json"])
def test_the_largest_image_as_json(survivor: TritonServer, content_type: str) -> None:
    image = bitmap(2644, 2643)
    assert MAX_IMAGE_BYTES - 10_000 < len(image) <= MAX_IMAGE_BYTES
    status, answer = post(survivor, image_body(image), "embed", content_type)
    assert status == 200
    expected = Wire(survivor.grpc_url).embed(image=[image])["embedding"]
    np.testing.assert_allclose(embedding(answer), expected, atol=ATOL)


@pytest.mark.triton
@pytest.mark.parametrize("content_type", [FORM, JSON], ids=["form", "json"])
def test_an_image_over_the_bound_is_refused_as_json(survivor: TritonServer, content_type: str) -> None:
    image = bitmap(2644, 2644)
    assert len(image) > MAX_IMAGE_BYTES
    status, answer = post(survivor, image_body(image), "embed", content_type)
    assert status == 400
    assert "IMAGE_TOO_LARGE" in answer["error"] and f"the server takes {MAX_IMAGE_BYTES}" in answer["error"]


@pytest.mark.triton
@pytest.mark.parametrize("content_type", [FORM, JSON], ids=["form", "json"])
@pytest.mark.parametrize("path", ["infer", "generate"])
def test_a_body_in_many_chunks(survivor: TritonServer, vector: np.ndarray, path: str, content_type: str) -> None:
    body = text_body(TEXT) if path == "infer" else json.dumps({"text": TEXT}).encode()
    with socket.create_connection(("127.0.0.1", survivor.ports["http"])) as connection:
        connection.sendall(
            f"POST /v2/models/embed_text/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
            + b"%x\r\n%s\r\n" % (len(body), body)
            + b"1\r\n \r\n" * NUM_CHUNKS
            + b"0\r\n\r\n"
        )
        response = HTTPResponse(connection)
        response.begin()
        answer = json.loads(response.read())
    assert response.status == 200
    ours = embedding(answer) if path == "infer" else np.array([answer["embedding"]], np.float32)
    np.testing.assert_allclose(ours, vector, atol=ATOL)


def nested_arrays(depth: int) -> str:
    return "[" * depth + '"a"' + "]" * depth


def nested_objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


DEEP = {
    "inputs": '{"inputs": %s}',
    "data": '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": %s}]}',
    "shape": '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": %s, "data": ["a"]}]}',
    "parameters": '{"parameters": {"a": %s}, "inputs": []}',
    "unknown key": '{"unknown": %s, "inputs": []}',
    "whole body": "%s",
}


@pytest.mark.triton
@pytest.mark.parametrize("nested", [nested_arrays, nested_objects])
@pytest.mark.parametrize("where", DEEP)
def test_deep_json(survivor: TritonServer, where: str, nested: Callable[[int], str]) -> None:
    status, answer = post(survivor, (DEEP[where] % nested(DEPTH)).encode())
    assert status in (200, 400, 500) and ("outputs" in answer) == (status == 200)  # arrays in `data` are flattened


TENSOR = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [%s], "data": [%s]}]}'
LONG = {
    "text": text_body("a" * 30_000_000),
    "escapes": TENSOR % (b"1", b'"%s"' % (b"\\u00e9" * 2**20)),
    "form separators": text_body("a=%41&+;" * 2**20),
    "items": text_body(*["a"] * 1_000_000),
    "number": TENSOR % (b"1", b"1" * 10**7),
    "shape": TENSOR % (b",".join([b"1"] * 10**6), b'"a"'),
    "inputs": b'{"inputs": [%s]}' % b",".join([text_body("a")[12:-2]] * 100_000),
    "name": text_body("a").replace(b'"text"', b'"%s"' % (b"a" * 10**7)),
}  # fmt: skip


@pytest.mark.triton
@pytest.mark.parametrize("content_type", [FORM, JSON], ids=["form", "json"])
@pytest.mark.parametrize("what", LONG)
def test_long_json_is_refused(survivor: TritonServer, what: str, content_type: str) -> None:
    status, answer = post(survivor, LONG[what], content_type=content_type)
    assert status in (400, 500) and answer["error"]


@pytest.mark.triton
@pytest.mark.parametrize("texts", [[b"a" * 30_000_000], [b"a"] * 1_000_000], ids=["text", "items"])
def test_long_tensors_are_refused_over_grpc(survivor: TritonServer, texts: list[bytes]) -> None:
    with pytest.raises(InferenceServerException, match="the server takes"):
        Wire(survivor.grpc_url).embed("embed_text", text=texts)


# --- the limit itself ---


def soft_limits(ulimit: str) -> tuple[int, int, str]:
    """Return the KiB that a process gets that is started with large stacks, its parent's after, and what is told."""
    program = """
import resource, subprocess, sys
from server.stack import large_stacks
with large_stacks() as shortage:
    child = subprocess.run(["sh", "-c", "ulimit -s"], capture_output=True, text=True).stdout
print(int(child), resource.getrlimit(resource.RLIMIT_STACK)[0] >> 10, shortage)
"""
    command = ["sh", "-c", f'ulimit {ulimit} && exec "$0" -c "$1"', sys.executable, program]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    child, parent, shortage = ran.stdout.strip().split(maxsplit=2)
    return int(child), int(parent), shortage


def test_the_stack_is_raised_for_the_server_alone() -> None:
    assert soft_limits("-Ss 8192") == (STACK_BYTES >> 10, 8192, "None")


def test_unlimited_is_less_for_a_thread() -> None:
    assert soft_limits("-Ss unlimited")[0] == STACK_BYTES >> 10


def test_a_larger_stack_is_kept() -> None:
    assert soft_limits("-Ss 1048576") == (1048576, 1048576, "None")


def test_a_hard_limit_is_respected_and_told() -> None:
    child, parent, shortage = soft_limits("-s 16384")
    assert (child, parent) == (16384, 16384)
    assert "16384 KiB" in shortage and "524288" in shortage and "ulimit -Hs" in shortage and "gRPC" in shortage


@pytest.mark.triton
def test_the_command_warns_of_a_low_hard_limit_and_serves(repository: Path) -> None:
    ports = " ".join(f"--{endpoint}-port 0" for endpoint in ("http", "grpc", "metrics", "health"))
    serve = f'ulimit -s 8192 && exec "$0" -m server --repository {repository} {ports}'
    process = subprocess.Popen(
        ["sh", "-c", serve, sys.executable], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    ready = process.stdout.readline()
    process.terminate()
    _, log = process.communicate()
    assert ready.startswith("ready ")
    assert "warning: the hard limit of the stack is 8192 KiB" in log
