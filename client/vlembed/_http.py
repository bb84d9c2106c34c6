"""The HTTP transport: KServe v2 with binary tensors, over the standard library.

tritonclient.http is not used: its connections work only in the thread that made them.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - sockets import it late: a fork in the middle would leave its lock taken for ever
import io
import json
import math
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, TypeVar, cast
from urllib.parse import SplitResult

import numpy as np
import numpy.typing as npt
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from ._exceptions import (
    ConnectError,
    InvalidInputError,
    OverloadedError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
    VlembedError,
)
from ._transport import TLS, Tensors, check_request_id, closed, new_request_id, refusal

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
UNAVAILABLE = (429, 502, 503)
REFUSALS = (InvalidInputError, OverloadedError, ServerError)  # after them a connection can be used again

T = TypeVar("T")


class HttpTransport:
    """Connections that are kept alive and lent to one thread at a time."""

    def __init__(self, address: SplitResult, *, tls: TLS | None, headers: Mapping[str, str] | None) -> None:
        self._url = address.geturl()
        self._address = address
        self._context = _ssl_context(tls or TLS()) if address.scheme == "https" else None
        self._headers = dict(headers or {})
        self._idle: deque[HTTPConnection] = deque()
        self._lent: set[HTTPConnection] = set()
        self._is_closed = False

    def infer(
        self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, npt.NDArray[Any]]:
        """See `Transport`."""
        request_id = new_request_id()
        header, body = encode(inputs, outputs, request_id)

        def read(status: int, header_length: str | None, data: bytes) -> dict[str, npt.NDArray[Any]]:
            if status != 200:
                raise self._translate(status, data)
            try:
                answered_id, arrays = decode(data, header_length, outputs)
            except Exception as error:  # parsers raise anything on a broken answer
                raise ProtocolError(
                    f"the answer of {self._url} cannot be read ({error!r} in {data[:80]!r}). Is it a vlembed server?"
                ) from error
            check_request_id(self._url, request_id, answered_id)
            return arrays

        return self._exchange("POST", f"/v2/models/{model}/infer", header, body, timeout_s, read)

    def is_ready(self, timeout_s: float) -> bool:
        """See `Transport`."""

        def read(status: int, _: str | None, data: bytes) -> bool:
            if status in (200, 400, 503):  # Triton says 400 for not yet
                return status == 200
            raise self._translate(status, data)

        return self._exchange("GET", "/v2/health/ready", {}, b"", timeout_s, read)

    def close(self) -> None:
        """See `Transport`."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()
        for connection in tuple(self._lent):
            with suppress(AttributeError, OSError):  # not connected, or no longer
                connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it

    def _exchange(
        self,
        method: str,
        path: str,
        header: Mapping[str, str],
        body: bytes,
        timeout_s: float,
        read: Callable[[int, str | None, bytes], T],
    ) -> T:
        """Send a request, and return what `read` makes of the status, the header length and the body of its answer."""
        deadline = time.monotonic() + timeout_s
        while True:
            connection, is_reused = self._borrow()
            try:
                if self._is_closed:
                    raise closed()
                result = read(*self._send(connection, deadline, method, path, header, body))
            except REFUSALS:
                self._give_back(connection)
                raise
            except BaseException as error:
                connection.close()  # what is left on it may be the answer to another request
                if self._is_closed:
                    raise closed() from error
                if is_reused and isinstance(error, ConnectionError):
                    continue  # the server closed it while it was idle; each round uses up one, and the last is new
                if isinstance(error, OSError | HTTPException | UnicodeError):  # the last of impossible host names
                    raise self._broken(error, timeout_s) from error
                raise
            else:
                self._give_back(connection)
                return result
            finally:
                self._lent.discard(connection)

    def _send(
        self,
        connection: HTTPConnection,
        deadline: float,
        method: str,
        path: str,
        header: Mapping[str, str],
        body: bytes,
    ) -> tuple[int, str | None, bytes]:
        if connection.sock is None:
            connection.timeout = _left_s(deadline)
            connection.connect()
            if self._is_closed:  # meanwhile
                raise closed()
        connection.sock.settimeout(_left_s(deadline))
        connection.response_class = partial(TimedResponse, deadline=deadline)  # type: ignore[assignment]
        connection.request(method, self._address.path.rstrip("/") + path, body, self._headers | dict(header))
        with connection.getresponse() as response:
            if cast(TimedResponse, response).incoming.is_at_end:  # http.client takes a head that was cut as complete
                raise IncompleteRead(b"")
            return response.status, response.getheader(HEADER_LENGTH), response.read()

    def _borrow(self) -> tuple[HTTPConnection, bool]:
        try:
            connection, is_reused = self._idle.pop(), True
        except IndexError:
            connection, is_reused = self._new_connection(), False
        self._lent.add(connection)
        return connection, is_reused

    def _new_connection(self) -> HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        return HTTPSConnection(host, port, context=self._context) if self._context else HTTPConnection(host, port)

    def _give_back(self, connection: HTTPConnection) -> None:
        self._idle.append(connection)
        if self._is_closed:
            self.close()

    def _broken(self, error: OSError | HTTPException | UnicodeError, timeout_s: float) -> VlembedError:
        if isinstance(error, TimeoutError):
            return RequestTimeoutError(f"{self._url} gave no answer within {timeout_s:.2f} s. Pass a longer timeout_s.")
        if isinstance(error, IncompleteRead):
            return ConnectError(f"{self._url} broke the connection in the middle of an answer ({error!r}).")
        if isinstance(error, OSError | UnicodeError):
            return ConnectError(f"cannot reach {self._url} ({error}). Is the server up, and is this its HTTP port?")
        return ProtocolError(f"{self._url} does not speak HTTP as it should ({error!r}). Is this its HTTP port?")

    def _translate(self, status: int, data: bytes) -> VlembedError:
        try:
            message = str(json.loads(data)["error"])
        except (KeyError, TypeError, ValueError):
            text = f"HTTP {status}: {data[:200]!r}"
            if status in UNAVAILABLE:
                return OverloadedError(f"{self._url} takes no more now ({text}). Try again later.")
            return ProtocolError(f"{self._url} does not answer as Triton does ({text}). Is this its HTTP port?")
        return refusal(message, is_unavailable=status in UNAVAILABLE, status=f"HTTP {status}")


class TimedReader(io.RawIOBase):
    """What a socket receives until a deadline, however slowly it comes: a socket's own timeout is for each wait."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline
        self.is_at_end = False

    def readable(self) -> bool:
        """See `io.RawIOBase`, here and below."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left_s(self._deadline))
        num_bytes = self._raw.readinto(buffer)
        self.is_at_end = num_bytes == 0
        return num_bytes

    def close(self) -> None:
        self._raw.close()
        super().close()


class TimedResponse(HTTPResponse):
    """An answer of which all must have come by the deadline."""

    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.incoming = TimedReader(sock, deadline)
        self.fp = io.BufferedReader(self.incoming)


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _ssl_context(tls: TLS) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError(f"{tls} cannot be used ({error}). Pass PEM files.") from error
    return context


def encode(inputs: Tensors, outputs: Sequence[str], request_id: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a request: JSON, then the tensors' bytes in the same order."""
    blobs = [
        serialize_byte_tensor(value).item() if value.dtype == np.object_ else value.tobytes()
        for value in inputs.values()
    ]
    description = {
        "id": request_id,
        "inputs": [
            {
                "name": name,
                "shape": value.shape,
                "datatype": np_to_triton_dtype(value.dtype),
                "parameters": {"binary_data_size": len(blob)},
            }
            for (name, value), blob in zip(inputs.items(), blobs, strict=True)
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
    }
    head = json.dumps(description).encode()
    return {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}, b"".join([head, *blobs])


def decode(data: bytes, header_length: str | None, outputs: Sequence[str]) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """Read the id of the request and the outputs out of an answer; raise anything if it is not one."""
    offset = int(header_length) if header_length else len(data)
    arrays: dict[str, npt.NDArray[Any]] = {}
    description = json.loads(data[:offset])
    for output in description["outputs"]:
        end = offset + int(output["parameters"]["binary_data_size"])
        blob, shape, datatype = data[offset:end], output["shape"], output["datatype"]
        is_bytes = datatype == "BYTES"
        values = deserialize_bytes_tensor(blob) if is_bytes else np.frombuffer(blob, triton_to_np_dtype(datatype))
        if math.prod(shape) != values.size or min(shape) < 0:
            raise ValueError(f"output {output['name']!r} is {datatype} {shape} in {len(blob)} bytes")
        arrays[output["name"]] = values.reshape(shape)
        offset = end
    return str(description.get("id", "")), {name: arrays[name] for name in outputs}
