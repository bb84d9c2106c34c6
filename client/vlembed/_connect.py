"""The choice of a transport by URL, and the checks of what is given with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from ._checks import shown
from ._containers import as_values
from ._exceptions import InvalidInputError
from ._grpc import GrpcTransport
from ._http import HttpTransport
from ._transport import TLS, Transport

SCHEMES = ("grpc", "grpcs", "http", "https")
HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def open_transport(url: str, *, tls: TLS | None, headers: Mapping[str, str]) -> Transport:
    """Return the transport of a URL's scheme; nothing is sent yet.

    Raises
    ------
    InvalidInputError
        Naming the part of the URL, the file or the header that is wrong.
    """
    address = _split_url(url)
    _check_tls(address, tls)
    for name, value in headers.items():
        is_text = isinstance(value, str) and value.isascii() and value.isprintable()
        if not HEADER_NAME.fullmatch(name) or not is_text:
            raise InvalidInputError(
                f"header {shown(name)} or its value cannot be sent. Pass str, each one line of printable ASCII."
            )
    transport = GrpcTransport if address.scheme in ("grpc", "grpcs") else HttpTransport
    return transport(address, tls=tls, headers=headers)


def as_urls(urls: str | Sequence[str]) -> list[str]:
    """Return one URL or several as a list, which is not empty."""
    if isinstance(urls, str | bytes) or not isinstance(urls, Iterable):
        return [urls]
    several = list(as_values("url", urls, "Pass the URL of a server, or a list of several."))
    if not several:
        raise InvalidInputError("url is an empty sequence. Pass the URL of at least one server.")
    return several


def open_transports(urls: Iterable[str], *, tls: TLS | None, headers: Mapping[str, str]) -> dict[str, Transport]:
    """Return the transport of each URL; errors as of `open_transport`."""
    return {url: open_transport(url, tls=tls, headers=headers) for url in urls}


def _split_url(url: str) -> SplitResult:
    rule = "Pass one like grpc://127.0.0.1:8001, http://127.0.0.1:8000, or grpcs:// and https:// for TLS."
    if not isinstance(url, str):
        raise InvalidInputError(f"url is {shown(url)}, which is no str. {rule}")
    try:
        address = urlsplit(url)
        has_port = address.port is not None
    except ValueError as error:
        raise InvalidInputError(f"url is {shown(url)} ({error}). {rule}") from error
    if address.scheme not in SCHEMES or not address.hostname:
        raise InvalidInputError(f"url is {shown(url)}, which has no scheme of {', '.join(SCHEMES)}, or no host. {rule}")
    is_grpc = address.scheme in ("grpc", "grpcs")
    if is_grpc and (not has_port or address.path not in ("", "/")):
        raise InvalidInputError(f"url is {shown(url)}; one of gRPC is a host and a port. {rule}")
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
