"""The gRPC transport, over tritonclient."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import numpy.typing as npt
from grpc import ssl_channel_credentials
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ._exceptions import ConnectError, InvalidInputError, ProtocolError, RequestTimeoutError, VlembedError
from ._transport import TLS, Tensors, check_request_id, closed, new_request_id, refusal

CHANNEL_ARGS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 4 << 20),  # errors travel there, and a pack's lists each bad item
    ("grpc.absolute_max_metadata_size", 4 << 20),
    ("grpc.max_reconnect_backoff_ms", 2000),  # find a server that starts late; the default waits up to two minutes
    ("grpc.use_local_subchannel_pool", 1),  # and share no back-off with other clients
]
BROKEN = re.compile(  # of an UNAVAILABLE that gRPC itself made; the server's own are about queues and models
    r"failed to connect|connection|socket closed|broken pipe|resolving|resolution|handshak|goaway|rst_stream|"
    r"recvmsg|sendmsg",
    re.IGNORECASE,
)


class GrpcTransport:
    """One channel, which threads share."""

    def __init__(self, address: SplitResult, *, tls: TLS | None, headers: Mapping[str, str] | None) -> None:
        self._url = address.geturl()
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}  # gRPC knows lower case only
        self._address = address
        self._pem = {name: _read(file) for name, file in vars(tls or TLS()).items()}
        self._open_client: Any = None
        self._opening = threading.Lock()
        self._is_closed = False

    @property
    def _client(self) -> Any:
        """The channel, made when it is needed: a process that has none forks without harm."""
        with self._opening:
            if self._is_closed:
                raise closed()
            if self._open_client is None:
                self._open_client = self._connect()
            return self._open_client

    def _connect(self) -> Any:
        pem = self._pem
        is_secure = self._address.scheme == "grpcs"
        credentials = ssl_channel_credentials(pem["ca_file"], pem["key_file"], pem["cert_file"]) if is_secure else None
        return grpc.InferenceServerClient(self._address.netloc, creds=credentials, channel_args=CHANNEL_ARGS)

    def infer(
        self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, npt.NDArray[Any]]:
        """See `Transport`."""
        request_id = new_request_id()
        result = self._call(
            self._client.infer,
            timeout_s,
            model_name=model,
            request_id=request_id,
            inputs=[_input(name, value) for name, value in inputs.items()],
            outputs=[grpc.InferRequestedOutput(name) for name in outputs],
        )
        check_request_id(self._url, request_id, result.get_response().id)
        try:
            arrays = {name: result.as_numpy(name) for name in outputs}
        except Exception as error:  # tritonclient's parser raises anything on a broken answer
            raise ProtocolError(
                f"the answer of {self._url} cannot be read ({error!r}). Is it a vlembed server?"
            ) from error
        if missing := [name for name, array in arrays.items() if array is None]:
            raise ProtocolError(f"the answer of {self._url} lacks {missing}. Is it a vlembed server?")
        return arrays

    def is_ready(self, timeout_s: float) -> bool:
        """See `Transport`."""
        return bool(self._call(self._client.is_server_ready, timeout_s))

    def close(self) -> None:
        """See `Transport`."""
        with self._opening:
            self._is_closed = True
        if self._open_client is not None:
            self._open_client.close()

    def _call(self, method: Any, timeout_s: float, **arguments: Any) -> Any:
        try:
            return method(**arguments, headers=self._headers, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise self._translate(error, timeout_s) from error
        except ValueError as error:  # how grpc tells that another thread closed the channel
            raise closed() from error

    def _translate(self, error: InferenceServerException, timeout_s: float) -> VlembedError:
        status = str(error.status()).removeprefix("StatusCode.")
        message = error.message() or ""
        if self._is_closed:
            return closed()
        if status == "DEADLINE_EXCEEDED":
            return RequestTimeoutError(f"{self._url} gave no answer within {timeout_s:.2f} s. Pass a longer timeout_s.")
        if status == "CANCELLED":  # not by us: a server cancels what it has not finished when it ends
            return ConnectError(f"{self._url} cancelled the request ({message}). Is the server stopping?")
        if status == "UNAVAILABLE" and BROKEN.search(message):
            return ConnectError(f"cannot reach {self._url} ({message}). Is the server up, and is this its gRPC port?")
        if status == "UNIMPLEMENTED":
            return ProtocolError(f"{self._url} does not speak KServe v2 ({message}). Is it a Triton server?")
        return refusal(message, is_unavailable=status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"), status=status)


def _read(file: str | Path | None) -> bytes | None:
    try:
        return None if file is None else Path(file).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{str(file)!r} of tls cannot be read ({error}). Pass PEM files.") from error


def _input(name: str, value: npt.NDArray[Any]) -> Any:
    tensor = grpc.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor
