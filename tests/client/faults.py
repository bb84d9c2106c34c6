"""A small vlembed server on real sockets, over both protocols, and a proxy in front of it that breaks connections."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from tests.client.conftest import MemoryTransport, Tensors
from vlembed import InvalidInputError, OverloadedError, VlembedError
from vlembed._http import HEADER_LENGTH

NUM_THREADS = 16  # of a gRPC server
PATIENCE_S = 20
OUTPUTS = ("embedding", "text_tokens", "image_tokens")


def eventually(is_true: Callable[[], bool], what: str) -> None:
    """Wait until something holds that other threads bring about."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def num_sockets() -> int:
    """Count the open sockets of this process."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count


def client_threads() -> set[str]:
    """Return the living threads that the package made."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("vlembed")}


# --- a server ---


def to_bytes(tensor: np.ndarray) -> bytes:
    return serialize_byte_tensor(tensor).item() if tensor.dtype == np.object_ else tensor.tobytes()


def to_tensor(data: bytes, datatype: str, shape: list[int]) -> np.ndarray:
    is_bytes = datatype == "BYTES"
    values = deserialize_bytes_tensor(data) if is_bytes else np.frombuffer(data, triton_to_np_dtype(datatype))
    return values.reshape(shape)


def refusal_of(error: VlembedError) -> str:
    """Return the message that Triton would send."""
    if not isinstance(error, InvalidInputError):
        return str(error)
    return f"{error}\n{json.dumps({'code': error.code, 'items': [vars(item) for item in error.items]})}"


@contextmanager
def serve_http(memory: MemoryTransport) -> Iterator[str]:
    """Serve over HTTP; give the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer, written in two parts, takes 40 ms

        def do_GET(self) -> None:
            self.reply(200 if memory.is_ready(0) else 400, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            offset = int(self.headers[HEADER_LENGTH])
            inputs: Tensors = {}
            request = json.loads(body[:offset])
            for tensor in request["inputs"]:
                end = offset + tensor["parameters"]["binary_data_size"]
                inputs[tensor["name"]] = to_tensor(body[offset:end], tensor["datatype"], tensor["shape"])
                offset = end
            try:
                answer = memory.infer(self.path.split("/")[-2], inputs, OUTPUTS, 0)
            except VlembedError as error:
                status = 503 if isinstance(error, OverloadedError) else 400
                return self.reply(status, json.dumps({"error": refusal_of(error)}).encode())
            blobs = {name: to_bytes(tensor) for name, tensor in answer.items()}
            outputs = [
                {"name": name, "datatype": np_to_triton_dtype(tensor.dtype), "shape": tensor.shape}
                | {"parameters": {"binary_data_size": len(blobs[name])}}
                for name, tensor in answer.items()
            ]
            head = json.dumps({"id": request["id"], "outputs": outputs}).encode()
            return self.reply(200, head + b"".join(blobs.values()), {HEADER_LENGTH: str(len(head))})

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            with suppress(OSError):  # the client may have gone
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Say nothing of connections that broke."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds until a shutdown is seen
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class GrpcServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, memory: MemoryTransport) -> None:
        self.memory = memory

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.memory.is_ready(0))

    def ModelInfer(self, request: Any, context: Any) -> Any:
        inputs = {
            tensor.name: to_tensor(data, tensor.datatype, list(tensor.shape))
            for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            answer = self.memory.infer(request.model_name, inputs, OUTPUTS, 0)
        except VlembedError as error:
            codes = grpc.StatusCode
            code = codes.UNAVAILABLE if isinstance(error, OverloadedError) else codes.INVALID_ARGUMENT
            context.abort(code, refusal_of(error))
        response = service_pb2.ModelInferResponse(id=request.id)
        for name, tensor in answer.items():
            response.outputs.add(name=name, datatype=np_to_triton_dtype(tensor.dtype), shape=tensor.shape)
            response.raw_output_contents.append(to_bytes(tensor))
        return response


@contextmanager
def serve_grpc(memory: MemoryTransport) -> Iterator[str]:
    """Serve over gRPC; give the URL."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcServicer(memory), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


SERVE = {"http": serve_http, "grpc": serve_grpc}


# --- a proxy ---


class Proxy:
    """Forward every connection to a server, and break what is asked for; use it in a `with` statement."""

    def __init__(self, url: str) -> None:
        scheme, _, address = url.partition("://")
        host, _, port = address.partition(":")
        self._target = host, int(port)
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self._port}"
        self.num_answers_to_cut = 0  # so many answers are cut in the middle from now on
        self.piece_bytes = 1 << 16  # of an answer at a time
        self.delay_s = 0.0  # before each of these
        self.num_accepted = 0

    def __enter__(self) -> Proxy:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_down()
        for thread in self._threads:
            thread.join()

    def go_down(self) -> None:
        """Refuse new connections and reset those that there are, as a server does that is killed."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes what waits for it
        self._listener.close()
        self.reset()

    def come_back(self) -> None:
        """Listen again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._listen()

    def reset(self) -> None:
        """Reset every connection."""
        with self._lock:
            broken, self._connections = self._connections, set()
        for connection in broken:
            _reset(connection)

    def _listen(self) -> None:
        self._start(self._accept, self._listener)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            self.num_accepted += 1
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._connections |= {client, server}
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(self.piece_bytes if is_answer else 1 << 16):
                if is_answer:
                    time.sleep(self.delay_s)
                    if self.num_answers_to_cut and len(data) > 100:  # more than settings and acknowledgements
                        self.num_answers_to_cut -= 1
                        target.sendall(data[: len(data) // 2])
                        break
                target.sendall(data)
        for connection in (source, target):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._connections.discard(connection)
            connection.close()


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes the thread that reads it; closing alone would not
    connection.close()
