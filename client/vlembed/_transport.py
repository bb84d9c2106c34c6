"""How tensors travel: the contract of a transport, and what a server's refusal means.

Knows no item and no pack. A transport raises this package's errors only.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from ._exceptions import (
    ConnectError,
    InvalidInputError,
    ItemError,
    OverloadedError,
    ProtocolError,
    ServerError,
    VlembedError,
)

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]

FULL_QUEUE = re.compile(r"exceeds maximum queue size|request timeout expired", re.IGNORECASE)
GOING = re.compile(  # of a server that stops, or that lost a process and should: others can answer, or its successor
    r"server is stopping|server not ready|server exiting|not at ready state|has no available versions|"
    r"stub process.* is not healthy",
    re.IGNORECASE,
)
ENSEMBLE = re.compile(r"^in ensemble '\w+', ")  # what the server puts before the message of a step


@dataclass(frozen=True)
class TLS:
    """Whom to trust and how to show who we are, for grpcs:// and https://; PEM files."""

    ca_file: str | Path | None = None  # authorities; the usual public ones by default
    cert_file: str | Path | None = None  # our own certificate, if the server asks for one
    key_file: str | Path | None = None  # and its key


class Transport(Protocol):
    """A connection to a server, or to several that serve one model, used by several threads at once."""

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
            For the whole request.

        Raises
        ------
        VlembedError
            Of any kind; the items of an `InvalidInputError` are counted from the first of this request.
        """

    def is_ready(self, timeout_s: float) -> bool:
        """Tell whether the server and its models are ready; raise as `infer` does."""

    def close(self) -> None:
        """Close every connection; requests in flight end, and they and what is called later raise `ConnectError`."""


def closed() -> ConnectError:
    """Return the error of a transport that was closed."""
    return ConnectError("this client is closed. Make a new EmbeddingClient.")


def new_request_id() -> str:
    """Return an id that no other request has, in this process or in one that was forked."""
    return secrets.token_hex(8)


def check_request_id(url: str, sent: str, answered: str) -> None:
    """Refuse the answer to another request, which a connection that is out of step may give.

    Raises
    ------
    ProtocolError
        The ids differ.
    """
    if answered != sent:
        raise ProtocolError(
            f"{url} answered request {answered[:40]!r} instead of {sent!r}. If a proxy is between, it mixes answers up "
            "or drops their id; nothing else may use the connections of this client."
        )


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
            items = [ItemError(int(i["index"]), str(i["code"]), str(i["message"] or i["code"])) for i in told["items"]]
            return InvalidInputError(line, items, code=str(told["code"]))
        except (KeyError, TypeError, ValueError):
            pass  # a message of somebody else
    if GOING.search(message):
        return ConnectError(f"the server is stopping or broken ({status}: {message}). Try again later.")
    if is_unavailable or FULL_QUEUE.search(message):
        return OverloadedError(f"the server takes no more now ({status}: {message}). Try again later.")
    return ServerError(f"the server refused or failed ({status}: {message}). Its log says more.")
