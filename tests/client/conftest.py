"""Servers that misbehave on demand, on real sockets, and one in memory that keeps a small server's bounds."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.client.indexes import DIMENSIONS, FINGERPRINT, OPTIONS, MakeIndex
from vlembed import EmbeddingClient, Index, InvalidInputError, ItemError
from vlembed._http import HEADER_LENGTH

INFO = {
    "checkpoint": "memory",
    "fingerprint": "0123456789abcdef",
    "dimensions": 8,
    "min_dimensions": 4,
    "default_instruction": "Represent the user's input.",
    "precision": "fp32",
    "versions": {},
    "bounds": {
        "max_items": 4,
        "max_tokens": 1000,
        "max_pack_tokens": 2000,
        "max_pack_image_tokens": 64,
        "max_pack_pixels": 2_000_000,
        "max_pack_text_bytes": 20_000,
        "max_text_bytes": 5000,
        "max_image_bytes": 10_000,
        "max_image_pixels": 1_000_000,
        "min_pixels": 4096,
        "max_pixels": 32_768,
    },
}
REQUEST_ID = "fedcba9876543210"  # stands in an answer for the id of the request
Tensors = dict[str, np.ndarray]


class MemoryTransport:
    """A server in memory: a vector tells its text, image and instruction, and the text "bad" is refused.

    It takes `max_items` items of a pack, whatever it advertises.
    """

    def __init__(self, max_items: int = 4) -> None:
        self.max_items = max_items
        self.requests: list[tuple[str, Tensors]] = []
        self.before_answer: Callable[[], object] = lambda: None

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> Tensors:
        if model == "info":
            return {"info": np.array([json.dumps(INFO).encode()], np.object_)}
        self.requests.append((model, inputs))
        self.before_answer()
        texts = inputs["text"].tolist()
        if len(texts) > self.max_items:
            raise InvalidInputError(f"the pack has {len(texts)} items", code="PACK_TOO_LARGE")
        if bad := [ItemError(i, "BAD", f"item {i} is bad") for i, text in enumerate(texts) if text == b"bad"]:
            raise InvalidInputError("item is bad", bad, code="INVALID_ITEMS")
        dimensions = int(inputs["dimensions"][0]) if "dimensions" in inputs else INFO["dimensions"]
        images = inputs.get("image", np.array([b""] * len(texts), np.object_))
        instructions = np.broadcast_to(inputs.get("instruction", np.array([b""], np.object_)), len(texts))
        rows = [vector(*item, dimensions) for item in zip(texts, images, instructions, strict=True)]
        text_tokens = np.array([len(text) for text in texts], np.int32)
        image_tokens = np.array([len(image) for image in images], np.int32)
        return {"embedding": np.array(rows), "text_tokens": text_tokens, "image_tokens": image_tokens}

    def is_ready(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        pass


def vector(text: bytes, image: bytes = b"", instruction: bytes = b"", dimensions: int = 8) -> np.ndarray:
    """Return what `MemoryTransport` answers for an item."""
    content = np.frombuffer(b"|".join([text, image, instruction]), np.uint8)
    return np.resize(content, dimensions).astype(np.float32)


@pytest.fixture
def memory() -> MemoryTransport:
    return MemoryTransport()


@pytest.fixture
def client(memory: MemoryTransport) -> Iterator[EmbeddingClient]:
    with EmbeddingClient("memory", transport=memory) as connected:
        yield connected


@pytest.fixture(scope="session")
def milvus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a milvus-lite, which serves it until the session ends."""
    return tmp_path_factory.mktemp("milvus") / "test.db"


@pytest.fixture
def make_index(request: pytest.FixtureRequest, milvus_file: Path) -> Iterator[MakeIndex]:
    """Make an empty index of a kind, in Milvus if it says so."""
    opened: list[Index] = []
    numbers = itertools.count()

    def make(kind: str, **arguments: Any) -> Index:
        if "client" not in arguments:
            arguments = {"dimensions": DIMENSIONS, "fingerprint": FINGERPRINT, **arguments}
        arguments = {**OPTIONS.get(kind, {}), **arguments}
        if kind.startswith("milvus "):
            name = f"test_{abs(hash(request.node.nodeid))}_{next(numbers)}"
            index = Index.connect(milvus_file, name, kind=kind.removeprefix("milvus "), **arguments)
        else:
            index = Index.create(kind, **arguments)
        opened.append(index)
        return index

    yield make
    for index in opened:
        index.close()


class HttpStub:
    """Answers every HTTP request with `status`, `headers` and `body`, in which `REQUEST_ID` becomes the request's."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, dict[str, str](), b""
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.ports: set[int] = set()  # of the clients' connections
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.seen.append((self.path, dict(self.headers), body))
                stub.ports.add(self.client_address[1])
                head = body[: int(self.headers.get(HEADER_LENGTH, 0))] or b"{}"
                answer = stub.body.replace(REQUEST_ID.encode(), json.loads(head).get("id", REQUEST_ID).encode())
                self.send_response(stub.status)
                for name, value in stub.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def http_stub() -> Iterator[HttpStub]:
    stub = HttpStub()
    thread = threading.Thread(target=stub.server.serve_forever, args=(0.01,))  # seconds until a shutdown is seen
    thread.start()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()
    thread.join()


class GrpcStub(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Ends every gRPC request with `status` and `message`, or gives `answer`, with `answered_id` or the request's."""

    def __init__(self) -> None:
        self.url, self.status, self.message = "", grpc.StatusCode.OK, ""
        self.answered_id: str | None = None
        self.answer = service_pb2.ModelInferResponse()
        self.metadata: dict[str, str] = {}

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        if self.status is not grpc.StatusCode.OK:
            context.abort(self.status, self.message)
        self.answer.id = request.id if self.answered_id is None else self.answered_id
        return self.answer


@pytest.fixture
def grpc_stub() -> Iterator[GrpcStub]:
    stub = GrpcStub()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stub, server)
        stub.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield stub
        server.stop(None).wait()
