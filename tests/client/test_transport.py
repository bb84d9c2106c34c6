"""Both transports on real sockets: every way to fail becomes an error of ours, and nothing else gets out."""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from tests.client.conftest import INFO, REQUEST_ID, GrpcStub, HttpStub
from vlembed import (
    TLS,
    ConnectError,
    EmbeddingClient,
    InvalidInputError,
    ItemError,
    OverloadedError,
    ProtocolError,
    RequestTimeoutError,
    Retry,
    ServerError,
    VlembedError,
)
from vlembed._http import HEADER_LENGTH, decode, encode

REFUSAL = "item 1 of 2: text is bad"
DETAILS = {"code": "INVALID_ITEMS", "items": [{"index": 1, "code": "TEXT_BAD", "message": "text is bad"}]}
SHORT_S = 0.2
DEADLINE_S = 20
ONCE = Retry(max_attempts=1)
SCHEMES = ["grpc", "grpcs", "http", "https"]


@contextmanager
def listening(behaviour: Callable[[socket.socket], object]) -> Iterator[int]:
    """Accept every connection, treat it as `behaviour` does, and close it; give the port."""
    connections: list[socket.socket] = []

    def treat(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behaviour(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                pool.submit(treat, connections[-1])

    with ThreadPoolExecutor(8) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = pool.submit(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes what waits for it
            accepting.result()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def failure_of(url: str, timeout_s: float = DEADLINE_S, **options: Any) -> VlembedError:
    """Ask for the info and for readiness; both fail alike."""
    with EmbeddingClient(url, timeout_s=timeout_s, retry=ONCE, **options) as client:
        with pytest.raises(VlembedError) as caught:
            client.info()
        with pytest.raises(RequestTimeoutError, match="was not ready within"):
            client.wait_until_ready(SHORT_S)
    return caught.value


def listen_only(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def reset(connection: socket.socket) -> None:
    connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- connections ---


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_listens(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = failure_of(f"{scheme}://127.0.0.1:{unused.getsockname()[1]}")
    assert isinstance(error, ConnectError)
    assert "Connection refused" in str(error)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
def test_no_such_host(scheme: str, host: str) -> None:
    assert isinstance(failure_of(f"{scheme}://{host}:1"), ConnectError)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("behaviour", [lambda connection: None, lambda connection: connection.recv(9), reset])
def test_the_connection_breaks(scheme: str, behaviour: Callable[[socket.socket], object]) -> None:
    with listening(behaviour) as port:
        assert isinstance(failure_of(f"{scheme}://127.0.0.1:{port}"), ConnectError)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_answer_in_time(scheme: str) -> None:
    with listening(listen_only) as port:
        error = failure_of(f"{scheme}://127.0.0.1:{port}", timeout_s=SHORT_S)
    assert isinstance(error, RequestTimeoutError)
    assert re.search(r"within 0\.(20|1\d) s", str(error))  # some of it may be gone before the first attempt


@pytest.mark.parametrize(
    "answer",
    [
        b"\0\0\0 no protocol\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500 + b"\r\n",
    ],
    ids=lambda answer: answer[:40],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_protocol_answers(scheme: str, answer: bytes) -> None:
    def speak(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        listen_only(connection)

    with listening(speak) as port:
        error = failure_of(f"{scheme}://127.0.0.1:{port}")
    assert isinstance(error, ProtocolError if scheme == "http" else ConnectError)


@pytest.mark.parametrize(
    "answer",
    [
        *[b"", b"Content-", b"Content-Length: 1", b"Content-Length: 100\r\n\r\ntoo short"],
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_an_http_answer_is_cut(answer: bytes) -> None:
    def cut(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + answer)
        connection.shutdown(socket.SHUT_WR)
        listen_only(connection)

    with listening(cut) as port:
        error = failure_of(f"http://127.0.0.1:{port}")
    assert isinstance(error, ConnectError)
    assert "broke the connection" in str(error)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_closed_client_says_so(scheme: str) -> None:
    client = EmbeddingClient(f"{scheme}://127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(ConnectError, match="this client is closed"):
        client.embed("a")
    with pytest.raises(RequestTimeoutError, match="this client is closed"):
        client.wait_until_ready(SHORT_S)


def test_closing_ends_a_grpc_request_in_flight() -> None:
    arrived = threading.Event()
    errors: list[BaseException] = []

    def swallow(connection: socket.socket) -> None:
        connection.sendall(b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame: the connection is up
        while connection.recv(1 << 20):
            arrived.set()

    with listening(swallow) as port:
        client = EmbeddingClient(f"grpc://127.0.0.1:{port}")

        def ask() -> None:
            try:
                client.info()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        arrived.wait(DEADLINE_S)
        client.close()
        thread.join()
    assert [type(error) for error in errors] == [ConnectError]


def test_idle_http_connections_that_the_server_closed_are_replaced(http_stub: HttpStub) -> None:
    http_stub.headers, http_stub.body = http_answer(info=info_tensor())
    with EmbeddingClient(http_stub.url) as client:
        client.wait_until_ready()
        (server,) = client._transport._transport._servers  # type: ignore[attr-defined]
        (idle,) = server.transport._idle
        idle.sock.shutdown(socket.SHUT_RDWR)
        assert client.info().checkpoint == INFO["checkpoint"]
        assert len(http_stub.seen) == 2


# --- answers ---


def info_tensor() -> np.ndarray:
    return np.array([json.dumps(INFO).encode()], np.object_)


def http_answer(**tensors: np.ndarray) -> tuple[dict[str, str], bytes]:
    """Build an answer as Triton does; the request's form is the same."""
    headers, body = encode(tensors, (), REQUEST_ID)
    length = int(headers[HEADER_LENGTH])
    request = json.loads(body[:length])
    head = json.dumps({"id": request["id"], "outputs": request["inputs"]}).encode()
    return {HEADER_LENGTH: str(len(head))}, head + body[length:]


def test_http_tensors_come_back_as_they_went() -> None:
    tensors = {
        "text": np.array([b"a", b"", b"\0\xff", b"x" * 70_000], np.object_),
        "dimensions": np.array([64], np.int32),
        "truncate": np.array([True]),
        "embedding": np.arange(6, dtype=np.float32).reshape(2, 3),
        "nothing": np.zeros((0, 3), np.float32),
    }
    headers, body = http_answer(**tensors)
    answered_id, decoded = decode(body, headers[HEADER_LENGTH], list(tensors))
    assert answered_id == REQUEST_ID
    for name, value in tensors.items():
        np.testing.assert_array_equal(decoded[name], value)
        assert decoded[name].dtype == value.dtype


def grpc_answer(name: str, datatype: str, shape: list[int], data: bytes) -> Any:
    answer = service_pb2.ModelInferResponse(raw_output_contents=[data])
    answer.outputs.add(name=name, datatype=datatype, shape=shape)
    return answer


def test_the_info_over_both(http_stub: HttpStub, grpc_stub: GrpcStub) -> None:
    http_stub.headers, http_stub.body = http_answer(info=info_tensor())
    grpc_stub.answer = grpc_answer("info", "BYTES", [1], serialize_byte_tensor(info_tensor()).item())
    with EmbeddingClient(http_stub.url) as one, EmbeddingClient(grpc_stub.url) as other:
        assert one.info() == other.info()
        assert one.info().bounds == INFO["bounds"]


def test_headers_over_both(http_stub: HttpStub, grpc_stub: GrpcStub) -> None:
    for url in (http_stub.url, grpc_stub.url):
        with EmbeddingClient(url, headers={"Authorization": "Bearer x"}) as client, pytest.raises(ProtocolError):
            client.info()
    assert http_stub.seen[0][1]["Authorization"] == "Bearer x"
    assert grpc_stub.metadata["authorization"] == "Bearer x"


def test_a_prefix_of_http_paths(http_stub: HttpStub) -> None:
    for url in (http_stub.url, f"{http_stub.url}/", f"{http_stub.url}/team/triton/"):
        with EmbeddingClient(url) as client:
            client.wait_until_ready()
    assert [path for path, _, _ in http_stub.seen] == 2 * ["/v2/health/ready"] + ["/team/triton/v2/health/ready"]


@pytest.mark.parametrize(
    "answer",
    [
        ({}, b""),
        ({}, b"<html>"),
        ({}, b'{"outputs": []}'),
        ({}, b'{"outputs": [{"name": "info", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}'),
        ({HEADER_LENGTH: "x"}, b"{}"),
        http_answer(other=np.zeros(1, np.int32)),
        (http_answer(info=info_tensor())[0], http_answer(info=info_tensor())[1][:-9]),
    ],
    ids=lambda answer: str(answer[1][:30]),
)
def test_http_answers_that_are_none(http_stub: HttpStub, answer: tuple[dict[str, str], bytes]) -> None:
    http_stub.headers, http_stub.body = answer
    with EmbeddingClient(http_stub.url) as client, pytest.raises(ProtocolError, match="cannot be read"):
        client.info()


@pytest.mark.parametrize(
    "answer",
    [
        service_pb2.ModelInferResponse(),
        grpc_answer("other", "INT32", [1], bytes(4)),
        grpc_answer("info", "BYTES", [2], serialize_byte_tensor(info_tensor()).item()),
        grpc_answer("info", "BYTES", [1], b"\xff\xff\xff\xff"),
        grpc_answer("info", "INT32", [3], bytes(7)),
        grpc_answer("info", "NONE", [1], bytes(4)),
    ],
    ids=lambda answer: str(answer.outputs)[:40].replace("\n", " "),
)
def test_grpc_answers_that_are_none(grpc_stub: GrpcStub, answer: Any) -> None:
    grpc_stub.answer = answer
    with EmbeddingClient(grpc_stub.url) as client, pytest.raises(ProtocolError):
        client.info()


# --- answers to other requests ---


@pytest.mark.parametrize("answered", ["", "1234567890abcdef", REQUEST_ID.upper()])
def test_an_answer_to_another_request_over_grpc(grpc_stub: GrpcStub, answered: str) -> None:
    grpc_stub.answer = grpc_answer("info", "BYTES", [1], serialize_byte_tensor(info_tensor()).item())
    grpc_stub.answered_id = answered
    with EmbeddingClient(grpc_stub.url) as client, pytest.raises(ProtocolError, match="answered request '"):
        client.info()


@pytest.mark.parametrize("answered", [None, "", "1234567890abcdef", 7])
def test_an_answer_to_another_request_over_http(http_stub: HttpStub, answered: object) -> None:
    headers, body = http_answer(info=info_tensor())
    length = int(headers[HEADER_LENGTH])
    description = json.loads(body[:length]) | {"id": answered}
    if answered is None:
        del description["id"]
    head = json.dumps(description).encode()
    http_stub.headers, http_stub.body = {HEADER_LENGTH: str(len(head))}, head + body[length:]
    with EmbeddingClient(http_stub.url) as client:
        with pytest.raises(ProtocolError, match="answered request '"):
            client.info()
        assert len(http_stub.seen) == 1  # not sent again
        http_stub.headers, http_stub.body = http_answer(info=info_tensor())
        assert client.info().checkpoint == INFO["checkpoint"]
    assert len(http_stub.ports) == 2  # the first connection was given up


def test_refusals_keep_the_connection(http_stub: HttpStub) -> None:
    with EmbeddingClient(http_stub.url, retry=ONCE) as client:
        for status in (400, 500, 503):
            http_stub.status, http_stub.body = status, b'{"error": "no"}'
            with pytest.raises(VlembedError):
                client.info()
    assert len(http_stub.ports) == 1


def test_every_request_has_an_id_of_its_own(http_stub: HttpStub) -> None:
    with EmbeddingClient(http_stub.url, retry=ONCE) as client:
        for _ in range(3):
            with pytest.raises(ProtocolError):
                client.info()
    assert len({json.loads(body)["id"] for _, _, body in http_stub.seen}) == 3


# --- refusals ---

OVERLOAD = "Exceeds maximum queue size"
GOING = (  # a server that stops, or that lost one of its processes
    "[request id: 1] Server is stopping, scheduler for model has stopped accepting new inference requests",
    "Server not ready",
    "Request for unknown model: 'embed_text' has no available versions",
    "Request for unknown model: 'info' version 1 is not at ready state",
    "in ensemble 'embed', Stub process 'preprocess_0_0' is not healthy.",
)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, f"in ensemble 'embed', {REFUSAL}\n{json.dumps(DETAILS)}", InvalidInputError),
        (400, "unexpected inference input 'x'", ServerError),
        (400, 'two lines\n{"of": "somebody else"}', ServerError),
        (401, "unauthorized", ServerError),
        (404, "Request for unknown model: 'info' is not found", ServerError),
        (429, "slow down", OverloadedError),
        (500, "failed", ServerError),
        (500, OVERLOAD, OverloadedError),
        (503, "not now", OverloadedError),
        *((status, message, ConnectError) for status, message in zip((503, 503, 404, 503, 500), GOING, strict=True)),
    ],
)
def test_http_refusals(http_stub: HttpStub, status: int, message: str, kind: type[VlembedError]) -> None:
    http_stub.status, http_stub.body = status, json.dumps({"error": message}).encode()
    check_refusal(http_stub.url, message, kind)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, ProtocolError), (302, ProtocolError), (404, ProtocolError), (429, OverloadedError), (503, OverloadedError)],
)
def test_a_proxys_refusals(http_stub: HttpStub, status: int, kind: type[VlembedError]) -> None:
    for body in (b"", b"<html>", b'"text"', b'{"message": "no"}'):
        http_stub.status, http_stub.body = status, body
        with EmbeddingClient(http_stub.url, retry=ONCE) as client, pytest.raises(kind):
            client.info()


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("INVALID_ARGUMENT", f"in ensemble 'embed', {REFUSAL}\n{json.dumps(DETAILS)}", InvalidInputError),
        ("INVALID_ARGUMENT", "unexpected inference input 'x'", ServerError),
        ("UNAUTHENTICATED", "who?", ServerError),
        ("NOT_FOUND", "Request for unknown model: 'info' is not found", ServerError),
        ("RESOURCE_EXHAUSTED", "slow down", OverloadedError),
        ("UNAVAILABLE", OVERLOAD, OverloadedError),
        ("UNAVAILABLE", "Socket closed", ConnectError),
        ("INTERNAL", "failed", ServerError),
        ("UNIMPLEMENTED", "no such method", ProtocolError),
        ("DEADLINE_EXCEEDED", "too late", RequestTimeoutError),
        ("CANCELLED", "stopped", ConnectError),
        *(
            (status, message, ConnectError)
            for status, message in zip(
                ("UNAVAILABLE", "UNAVAILABLE", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"), GOING, strict=True
            )
        ),
    ],
)
def test_grpc_refusals(grpc_stub: GrpcStub, status: str, message: str, kind: type[VlembedError]) -> None:
    grpc_stub.status, grpc_stub.message = grpc.StatusCode[status], message
    check_refusal(grpc_stub.url, message, kind)


def check_refusal(url: str, message: str, kind: type[VlembedError]) -> None:
    with EmbeddingClient(url, retry=ONCE) as client, pytest.raises(VlembedError) as caught:
        client.info()
    assert type(caught.value) is kind
    if isinstance(caught.value, InvalidInputError):
        assert str(caught.value) == REFUSAL
        assert caught.value.code == "INVALID_ITEMS"
        assert caught.value.items == (ItemError(1, "TEXT_BAD", "text is bad"),)
    elif kind is not RequestTimeoutError:
        assert message in str(caught.value)


def test_long_refusals_over_grpc(grpc_stub: GrpcStub) -> None:
    """Hold what a pack of bad items says; in gRPC it is a trailer, of 8 KiB at most by default."""
    items = [{"index": index, "code": "TEXT_BAD", "message": "schön " * 30} for index in range(1000)]
    grpc_stub.status = grpc.StatusCode.INVALID_ARGUMENT
    grpc_stub.message = f"{REFUSAL}\n{json.dumps({'code': 'INVALID_ITEMS', 'items': items}, ensure_ascii=False)}"
    with EmbeddingClient(grpc_stub.url) as client, pytest.raises(InvalidInputError) as caught:
        client.info()
    assert len(caught.value.items) == 1000


# --- arguments ---


@pytest.mark.parametrize(
    "url",
    [
        *["localhost:8001", "127.0.0.1", "", "ftp://localhost:1", "grpc://localhost", "grpc://localhost:1/path"],
        *["http://", "http://localhost:99999", "http://[::1", "http://user@localhost", "http://localhost?a=b"],
    ],
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"Pass one like grpc://127\.0\.0\.1:8001"):
        EmbeddingClient(url)


@pytest.mark.parametrize("url", ["grpc://[::1]:8001", "http://localhost", "https://example.com/triton", "HTTP://a:1"])
def test_right_urls(url: str) -> None:
    EmbeddingClient(url).close()


@pytest.mark.parametrize("headers", [{"a b": "x"}, {"": "x"}, {"a": "x\r\nb: y"}, {"a": "ä"}], ids=str)
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_wrong_headers(scheme: str, headers: Mapping[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="cannot be sent"):
        EmbeddingClient(f"{scheme}://127.0.0.1:1", headers=headers)


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """Make a self-signed certificate of this host and its key."""
    folder = tmp_path_factory.mktemp("tls")
    tls = TLS(ca_file=folder / "cert.pem", cert_file=folder / "cert.pem", key_file=folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tls.key_file), "-out", str(tls.cert_file)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the command openssl is missing: apt-get install openssl")
    return tls


def test_https(http_stub: HttpStub, certificate: TLS) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate.ca_file))
    context.load_cert_chain(str(certificate.cert_file), str(certificate.key_file))
    context.verify_mode = ssl.CERT_REQUIRED
    http_stub.server.socket = context.wrap_socket(http_stub.server.socket, server_side=True)
    http_stub.headers, http_stub.body = http_answer(info=info_tensor())
    url = http_stub.url.replace("http://", "https://")
    with EmbeddingClient(url, tls=certificate) as client:
        assert client.info().checkpoint == INFO["checkpoint"]
    error = failure_of(url)
    assert isinstance(error, ConnectError)
    assert "self-signed certificate" in str(error)


def test_grpcs(certificate: TLS) -> None:
    stub = GrpcStub()
    stub.answer = grpc_answer("info", "BYTES", [1], serialize_byte_tensor(info_tensor()).item())
    cert, key = Path(str(certificate.cert_file)).read_bytes(), Path(str(certificate.key_file)).read_bytes()
    credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=cert, require_client_auth=True)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stub, server)
        url = f"grpcs://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        with EmbeddingClient(url, tls=certificate) as client:
            assert client.info().checkpoint == INFO["checkpoint"]
        assert isinstance(failure_of(url), ConnectError)
        server.stop(None).wait()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_tls_arguments(scheme: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(InvalidInputError, match=f"Use {scheme}s://"):
        EmbeddingClient(f"{scheme}://127.0.0.1:1", tls=TLS())
    with pytest.raises(InvalidInputError, match=r"missing\.pem', which is no file"):
        EmbeddingClient(f"{scheme}s://127.0.0.1:1", tls=TLS(ca_file=missing))
    with pytest.raises(InvalidInputError, match="one of cert_file and key_file"):
        EmbeddingClient(f"{scheme}s://127.0.0.1:1", tls=TLS(cert_file=missing))
    missing.write_text("no certificate")
    with pytest.raises((InvalidInputError, ConnectError)):
        EmbeddingClient(f"{scheme}s://127.0.0.1:1", tls=TLS(ca_file=missing)).info()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_certificates_are_read_at_once(scheme: str, certificate: TLS, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(Path(str(certificate.ca_file)).read_bytes())
    with EmbeddingClient(f"{scheme}://127.0.0.1:1", tls=TLS(ca_file=file), retry=ONCE) as client:
        file.unlink()
        with pytest.raises(ConnectError):
            client.info()
        client._after_fork()  # as in a child
        with pytest.raises(InvalidInputError, match=r"ca\.pem"):
            client.info()
