"""One call, two wires: KServe v2 over gRPC or HTTP, through tritonclient.

Everything that goes wrong below becomes an error of vlembed here, and only here.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ._exceptions import (
    ConnectError,
    InvalidInputError,
    ItemError,
    OverloadedError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
    VlembedError,
)

Tensors = Mapping[str, npt.NDArray[Any]]
IN_ENSEMBLE = re.compile(r"^in ensemble '\w+', ")
QUEUE_IS_FULL = ("exceeds maximum queue size", "request timeout expired")  # how tritonserver says it


@dataclass(frozen=True)
class TLS:
    """Files, in PEM; what is left out is the system's own."""

    root_certificates: Path | None = None  # whom to trust
    private_key: Path | None = None  # of this client, if the server asks who it is
    certificate_chain: Path | None = None


class Transport(Protocol):
    """How an `EmbeddingClient` reaches its server; may be called from many threads at once."""

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Send one request and return its outputs; raise only errors of vlembed."""

    def is_ready(self) -> bool:
        """Tell whether the server serves; False also while it cannot be reached."""

    def close(self) -> None:
        """Give back the connections."""


def connect(url: str, *, timeout_s: float, tls: TLS | None, headers: Mapping[str, str]) -> Transport:
    """Choose the transport of a URL: grpc://, grpcs://, http:// or https://. Nothing is sent yet."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("grpc", "grpcs", "http", "https") or not parts.hostname or port is None:
        raise InvalidInputError(
            f"url is {url!r}; a scheme of grpc, grpcs, http or https, a host and a port are needed, such as "
            "grpc://127.0.0.1:8001.",
            code="URL_INVALID",
        )
    secure = parts.scheme in ("grpcs", "https")
    if tls is not None and not secure:
        raise InvalidInputError(f"url is {url!r} with TLS options; use grpcs:// or https://.", code="URL_INVALID")
    transport = GrpcTransport if parts.scheme.startswith("grpc") else HttpTransport
    return transport(parts.netloc, timeout_s, (tls or TLS()) if secure else None, dict(headers))


class GrpcTransport:
    """One channel for all threads."""

    def __init__(self, address: str, timeout_s: float, tls: TLS | None, headers: dict[str, str]) -> None:
        self._address, self._timeout_s, self._headers = address, timeout_s, headers
        files = {} if tls is None else {name: str(path) for name, path in vars(tls).items() if path}
        try:
            self._client = grpc.InferenceServerClient(address, ssl=tls is not None, **files)
        except OSError as error:
            raise InvalidInputError(f"a TLS file cannot be read: {error}.", code="TLS_INVALID") from error

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Send one request."""
        try:
            result = self._client.infer(
                model,
                [_filled(grpc.InferInput, name, value) for name, value in inputs.items()],
                outputs=[grpc.InferRequestedOutput(name) for name in outputs],
                client_timeout=self._timeout_s,
                headers=self._headers,
            )
        except InferenceServerException as error:
            _raise_grpc(error, self._address, self._timeout_s)
        except ValueError as error:  # of grpc, on a closed channel
            raise ConnectError("the client is closed. Make a new one.") from error
        return _outputs(result, outputs)

    def is_ready(self) -> bool:
        """Ask the server whether it is ready."""
        try:
            return bool(self._client.is_server_ready(headers=self._headers, client_timeout=self._timeout_s))
        except InferenceServerException:
            return False

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class HttpTransport:
    """One connection for each thread: tritonclient's belongs to the thread that made it."""

    def __init__(self, address: str, timeout_s: float, tls: TLS | None, headers: dict[str, str]) -> None:
        self._address, self._timeout_s, self._headers = address, timeout_s, headers
        self._options: dict[str, Any] = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        if tls is not None:
            files = {"ca_certs": tls.root_certificates, "keyfile": tls.private_key, "certfile": tls.certificate_chain}
            self._options |= {"ssl": True, "ssl_options": {name: str(path) for name, path in files.items() if path}}
        self._local = threading.local()
        self._clients: list[Any] = []
        self._closed = False

    @property
    def _client(self) -> Any:
        if self._closed:
            raise ConnectError("the client is closed. Make a new one.")
        if not hasattr(self._local, "client"):
            self._local.client = http.InferenceServerClient(self._address, **self._options)
            self._clients.append(self._local.client)
        return self._local.client

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Send one request."""
        try:
            result = self._client.infer(
                model,
                [_filled(http.InferInput, name, value) for name, value in inputs.items()],
                outputs=[http.InferRequestedOutput(name) for name in outputs],
                headers=self._headers,
            )
        except VlembedError:
            raise
        except InferenceServerException as error:
            _raise_http(error)
        except TimeoutError as error:
            raise RequestTimeoutError(f"no answer from {self._address} within {self._timeout_s:g} s.") from error
        except Exception as error:  # of sockets, TLS and geventhttpclient's parser
            raise ConnectError(f"{self._address} cannot be reached ({error or type(error).__name__}).") from error
        return _outputs(result, outputs)

    def is_ready(self) -> bool:
        """Ask the server whether it is ready."""
        try:
            return bool(self._client.is_server_ready(headers=self._headers))
        except ConnectError:
            raise
        except Exception:  # as in infer
            return False

    def close(self) -> None:
        """Close the connections of all threads."""
        self._closed = True
        for client in self._clients:
            client.close()


def _filled(kind: Any, name: str, value: npt.NDArray[Any]) -> Any:
    tensor = kind(name, list(value.shape), np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor


def _outputs(result: Any, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        arrays = {name: result.as_numpy(name) for name in names}
    except Exception as error:  # tritonclient raises whatever its parsing meets
        raise ProtocolError(f"the answer cannot be read ({error}). Is this a vlembed server?") from error
    if missing := [name for name, array in arrays.items() if array is None]:
        raise ProtocolError(f"the answer lacks {', '.join(missing)}. Is this a vlembed server?")
    return {name: np.asarray(array) for name, array in arrays.items()}


def _raise_grpc(error: InferenceServerException, address: str, timeout_s: float) -> NoReturn:
    status, message = str(error.status()).removeprefix("StatusCode."), str(error.message())
    if status == "INVALID_ARGUMENT":
        raise _invalid_input(message) from error
    if status == "DEADLINE_EXCEEDED":
        raise RequestTimeoutError(f"no answer from {address} within {timeout_s:g} s.") from error
    if status == "RESOURCE_EXHAUSTED" or _queue_is_full(message):
        raise OverloadedError(f"{message}. Send again later.") from error
    if status == "UNAVAILABLE":
        raise ConnectError(f"{address} cannot be reached ({message}).") from error
    if status in ("NOT_FOUND", "UNIMPLEMENTED"):
        raise ProtocolError(f"{message}. Is this a vlembed server?") from error
    raise ServerError(message) from error


def _raise_http(error: InferenceServerException) -> NoReturn:
    status, message = str(error.status()), str(error.message())
    if status in ("429", "503") or _queue_is_full(message):
        raise OverloadedError(f"{message}. Send again later.") from error
    if status == "504":
        raise RequestTimeoutError(f"a gateway had no answer in time: {message}") from error
    if status == "404" or "decoding the response" in message:
        raise ProtocolError(f"{message}. Is this a vlembed server?") from error
    if status == "400":
        raise (ProtocolError(message) if "unknown model" in message else _invalid_input(message)) from error
    raise ServerError(message) from error


def _queue_is_full(message: str) -> bool:
    return any(words in message.lower() for words in QUEUE_IS_FULL)


def _invalid_input(message: str) -> InvalidInputError:
    """Read a refusal of the server: a line for people, and a JSON object with every bad item."""
    line, _, details = message.partition("\n")
    line = IN_ENSEMBLE.sub("", line)
    try:
        content = json.loads(details)
        items = [ItemError(int(item["index"]), item["code"], item["message"]) for item in content["items"]]
        return InvalidInputError(line, items=items, code=content["code"])
    except (ValueError, KeyError, TypeError):  # a refusal of tritonserver itself
        return InvalidInputError(message, code="REFUSED")
