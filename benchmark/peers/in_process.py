"""sentence-transformers without a server: batches come through a socket of this machine, vectors go back."""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing.connection import Client

from .encoder import Encoder, settings


def main() -> None:
    """Answer until the other side hangs up."""
    encoder = Encoder(settings())
    with Client(os.environ["PEER_SOCKET"], family="AF_UNIX") as connection, suppress(EOFError):
        while True:
            items, batch_size = connection.recv()
            vectors = encoder(items, batch_size)
            connection.send((vectors.shape, vectors.tobytes()))  # pickled arrays differ between releases of numpy


if __name__ == "__main__":
    main()
