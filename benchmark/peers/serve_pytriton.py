"""PyTriton: the same tritonserver as this project's embedded default, with the PyTorch model behind its batcher."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from .encoder import Encoder, settings


def main() -> None:
    """Serve on loopback; the port is that of gRPC."""
    options = settings()
    encoder = Encoder(options)

    @batch
    def embed(text: Any, image: Any) -> dict[str, Any]:
        pairs = zip(text[:, 0], image[:, 0], strict=True)
        return {"embedding": encoder([(words.decode(), bytes(picture)) for words, picture in pairs])}

    config = TritonConfig(
        http_address="127.0.0.1", grpc_address="127.0.0.1", metrics_address="127.0.0.1",
        http_port=options.port + 1, grpc_port=options.port, allow_metrics=False, log_verbose=0,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="embed",
            infer_func=embed,
            inputs=[Tensor(name=name, dtype=bytes, shape=(1,)) for name in ("text", "image")],
            outputs=[Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=options.batch_size, batcher=DynamicBatcher()),  # no queue delay
        )
        triton.serve()


if __name__ == "__main__":
    main()
