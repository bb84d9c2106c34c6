"""BentoML with its adaptive batching: `bentoml serve benchmark.peers.serve_bentoml:Embedder`."""

from __future__ import annotations

import bentoml

from .encoder import Encoder, from_json, settings, to_json

MAX_LATENCY_MS = 600_000  # beyond it requests are refused, which would flatter the rest


@bentoml.service(
    workers=1,
    traffic={"timeout": 600, "max_concurrency": 10_000},
    logging={"access": {"enabled": False}},
)
class Embedder:
    """The model in one worker process."""

    def __init__(self) -> None:
        self.encoder = Encoder(settings())

    @bentoml.api(batchable=True, max_batch_size=settings().batch_size, max_latency_ms=MAX_LATENCY_MS)
    def embed(self, items: list[dict[str, str]]) -> list[dict[str, str]]:
        """Embed the items of several requests."""
        return [to_json(vector) for vector in self.encoder([from_json(item) for item in items])]
