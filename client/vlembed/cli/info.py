"""`vlembed info`: what a server says of itself."""

from __future__ import annotations

from dataclasses import asdict

import click

from .._client import EmbeddingClient
from .._retry import Retry
from ._options import takes_client
from ._outputs import Output, takes_output, to_json, to_pairs


@click.command()
@takes_output("table", "json")
@takes_client(Retry(max_attempts=1))
def info(client: EmbeddingClient, output: Output) -> None:
    """Show what the server serves: checkpoint, fingerprint, dimensions and bounds.

    Asks once and waits for no server that is still starting, so that it tells whether one is there.
    """
    told = asdict(client.info())
    if output.format == "json":
        output.write(to_json(told))
        return
    bounds, versions = told.pop("bounds"), told.pop("versions")
    output.write(to_pairs({**told, **bounds, **versions}))
