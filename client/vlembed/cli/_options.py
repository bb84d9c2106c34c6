"""Options that commands share: of the server, and of embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .._client import EmbeddingClient
from .._retry import Retry
from .._transport import TLS
from ._inputs import Command, Decorator
from ._local_path import LocalPath

DEFAULT_URL = "grpc://127.0.0.1:8001"
PEM = LocalPath()


class Lines(click.types.StringParamType):
    """A string; several of the environment are lines."""

    envvar_list_splitter = "\n"


def takes_server(command: Command) -> Command:
    """Add the options of the server; the command gets arguments of `EmbeddingClient` as `server`."""

    @click.option(
        "--url",
        "urls",
        multiple=True,
        envvar="VLEMBED_URL",
        show_envvar=True,
        default=[DEFAULT_URL],
        show_default=True,
        metavar="URL",
        help="The server: grpc://host:port, grpcs://, http:// or https://. Repeatable, for several servers of one "
        "model; in the variable, with spaces between.",
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="The longest wait for a request.",
    )
    @click.option(
        "--header",
        "headers",
        type=Lines(),
        multiple=True,
        envvar="VLEMBED_HEADERS",
        show_envvar=True,
        metavar="'NAME: VALUE'",
        help="Sent with every request, for example an authorization. Repeatable; in the variable, a line each.",
    )
    @click.option("--ca-file", type=PEM, metavar="PEM", help="Authorities to trust instead of the public ones.")
    @click.option("--cert-file", type=PEM, metavar="PEM", help="Our certificate, for a server that asks for one.")
    @click.option("--key-file", type=PEM, metavar="PEM", help="The key of --cert-file.")
    @wraps(command)
    def wrapped(
        *args: Any,
        urls: Sequence[str],
        timeout: float,
        headers: Sequence[str],
        ca_file: Path | None,
        cert_file: Path | None,
        key_file: Path | None,
        **kwargs: Any,
    ) -> Any:
        server = {
            "url": list(urls),
            "timeout_s": timeout,
            "headers": dict(_split_header(header) for header in headers),
            "tls": TLS(ca_file, cert_file, key_file) if ca_file or cert_file or key_file else None,
        }
        return command(*args, server=server, **kwargs)

    return wrapped


def takes_client(retry: Retry = Retry()) -> Decorator:  # noqa: B008 - it is frozen
    """Add the options of the server; the command gets an `EmbeddingClient` as `client`, closed at its end."""

    def decorate(command: Command) -> Command:
        @takes_server
        @wraps(command)
        def wrapped(*args: Any, server: Mapping[str, Any], **kwargs: Any) -> Any:
            with EmbeddingClient(**server, retry=retry) as client:
                return command(*args, client=client, **kwargs)

        return wrapped

    return decorate


def _split_header(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon:
        raise click.UsageError("a --header has no colon after its name. Give 'Name: value'.")
    return name.strip(), value.strip()


EMBED_OPTIONS: Mapping[str, Decorator] = {
    "instruction": click.option(
        "--instruction", metavar="TEXT", help="The task, for items without one of their own; by default the model's."
    ),
    "dimensions": click.option(
        "--dimensions", type=int, metavar="D", help="A smaller (Matryoshka) size of the vectors."
    ),
    "max_pixels": click.option(
        "--max-pixels", type=int, metavar="PIXELS", help="Scale images down to this many pixels."
    ),
    "truncate": click.option("--truncate", is_flag=True, help="Cut texts that are too long instead of refusing them."),
    "allow_reference_text": click.option(
        "--allow-reference-text", is_flag=True, help="Embed a text that is a URL or the path of an image as a string."
    ),
}
ITEM_OPTIONS = ("max_pixels", "truncate", "allow_reference_text")


def takes_embed_options(*names: str) -> Decorator:
    """Add options of `EmbeddingClient.embed`; the command gets those as `options`."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            options = {name: kwargs.pop(name) for name in names}
            return command(*args, options=options, **kwargs)

        decorated: Command = wrapped
        for name in reversed(names):
            decorated = EMBED_OPTIONS[name](decorated)
        return decorated

    return decorate
