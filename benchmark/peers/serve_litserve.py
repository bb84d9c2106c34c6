"""LitServe with its dynamic batching."""

from __future__ import annotations

from typing import Any

import litserve

from ..workload import Item
from .encoder import Encoder, from_json, settings, to_json

BATCH_TIMEOUT_S = 0.005  # how long a batch waits to be filled


class Api(litserve.LitAPI):
    """Requests of one item each, put together to batches."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.encoder = Encoder(settings())

    def decode_request(self, request: dict[str, str]) -> Item:
        """Read an item."""
        return from_json(request)

    def batch(self, inputs: list[Item]) -> list[Item]:
        """Leave the items as they are: the encoder pads."""
        return inputs

    def predict(self, x: list[Item]) -> Any:
        """Embed a batch."""
        return self.encoder(x)

    def unbatch(self, output: Any) -> list[Any]:
        """Return a row an item."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, str]:
        """Write a vector."""
        return to_json(output)


def main() -> None:
    """Serve on loopback."""
    options = settings()
    api = Api(max_batch_size=options.batch_size, batch_timeout=BATCH_TIMEOUT_S, api_path="/embed")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=options.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
