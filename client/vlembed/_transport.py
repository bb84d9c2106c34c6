"""How tensors travel: the contract of a transport, the choice by URL, and what a server's refusal means.

Knows no item and no pack. A transport raises this package's errors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import SplitResult, urlsplit

import numpy.typing as npt

from ._exceptions import InvalidInputError, ItemError, OverloadedError, ServerError, VlembedError

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]

SCHEMES = ("grpc", "grpcs", "http", "https")
FULL_QUEUE = re.compile(r"exceeds maximum queue size|request timeout expired", re.IGNORECASE)
ENSEMBLE = re.compile(r"^in ensemble '\w+', ")  # what the server puts before the message of a step
HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class TLS:
    """Whom to trust and how to show who we are, for grpcs:// and https://; PEM files."""

    ca_file: str | Path | None = None  # authorities; the usual public ones by default
    cert_file: str | Path | None = None  # our own certificate, if the server asks for one
    key_file: str | Path | None = None  # and its key


class Transport(Protocol):
    """A connection to one server, used by several threads at once."""

    def infer(
        self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, npt.NDArray[Any]]:
        """Send tensors to a model and return the outputs that were asked for.

        Parameters
        ----------
        model
            Its name.
        inputs
            bytes in an object array, int32 or bool.
        outputs
            Names.
        timeout_s
            Over gRPC for the whole request, over HTTP for every wait on the socket.

        Raises
        ------
        VlembedError
            Of any kind; the items of an `InvalidInputError` are counted from the first of this request.
        """

    def is_ready(self, timeout_s: float) -> bool:
        """Tell whether the server and its models are ready; raise as `infer` does."""

    def close(self) -> None:
        """Close every connection; what is called later raises `ConnectError`."""


def open_transport(url: str, *, tls: TLS | None, headers: Mapping[str, str] | None) -> Transport:
    """Return the transport of a URL's scheme; nothing is sent yet.

    Raises
    ------
    InvalidInputError
        Naming the part of the URL, the file or the header that is wrong.
    """
    from ._grpc import GrpcTransport
    from ._http import HttpTransport

    address = _split_url(url)
    _check_tls(address, tls)
    for name, value in (headers or {}).items():
        if not HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise InvalidInputError(f"header {name!r} or its value cannot be sent. Use one line of printable ASCII.")
    transport = GrpcTransport if address.scheme in ("grpc", "grpcs") else HttpTransport
    return transport(address, tls=tls, headers=headers)


def _split_url(url: str) -> SplitResult:
    rule = "Pass one like grpc://127.0.0.1:8001, http://127.0.0.1:8000, or grpcs:// and https:// for TLS."
    try:
        address = urlsplit(url)
        has_port = address.port is not None
    except ValueError as error:
        raise InvalidInputError(f"url is {url!r} ({error}). {rule}") from error
    if address.scheme not in SCHEMES or not address.hostname:
        raise InvalidInputError(f"url is {url!r}, which has no scheme of {', '.join(SCHEMES)}, or no host. {rule}")
    is_grpc = address.scheme in ("grpc", "grpcs")
    if is_grpc and (not has_port or address.path not in ("", "/")):
        raise InvalidInputError(f"url is {url!r}; one of gRPC is a host and a port. {rule}")
    if address.username or address.query or address.fragment:
        raise InvalidInputError(f"url has a user, a query or a fragment, which are not sent. Use headers. {rule}")
    return address


def _check_tls(address: SplitResult, tls: TLS | None) -> None:
    if tls is None:
        return
    if address.scheme in ("grpc", "http"):
        raise InvalidInputError(f"tls is given, but {address.scheme}:// is not encrypted. Use {address.scheme}s://.")
    if (tls.cert_file is None) != (tls.key_file is None):
        raise InvalidInputError("tls has one of cert_file and key_file. Pass both or none.")
    for name, file in vars(tls).items():
        if file is not None and not Path(file).is_file():
            raise InvalidInputError(f"tls.{name} is {str(file)!r}, which is no file. Pass the path of a PEM file.")


def refusal(message: str, *, is_unavailable: bool, status: str) -> VlembedError:
    """Return the error that a server's refusal means.

    Parameters
    ----------
    message
        The server's; of bad input it ends with a line of JSON that lists the items.
    is_unavailable
        The status asks to try again later.
    status
        Its name, for messages.
    """
    line, _, details = ENSEMBLE.sub("", message).partition("\n")
    if details.startswith("{"):
        try:
            told = json.loads(details)
            items = [ItemError(int(item["index"]), str(item["code"]), str(item["message"])) for item in told["items"]]
            return InvalidInputError(line, items, code=str(told["code"]))
        except (KeyError, TypeError, ValueError):
            pass  # a message of somebody else
    if is_unavailable or FULL_QUEUE.search(message):
        return OverloadedError(f"the server takes no more now ({status}: {message}). Try again later.")
    return ServerError(f"the server refused or failed ({status}: {message}). Its log says more.")
