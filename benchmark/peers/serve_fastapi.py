"""FastAPI without batching: one thread computes, one item at a time, on all cores."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI

from .encoder import Encoder, from_json, settings, to_json


def main() -> None:
    """Serve on loopback."""
    options = settings()
    encoder = Encoder(options)
    worker = ThreadPoolExecutor(1)  # several would only share the cores
    application = FastAPI()

    @application.post("/embed")
    async def embed(message: dict[str, str]) -> dict[str, str]:
        vectors = await asyncio.get_running_loop().run_in_executor(worker, encoder, [from_json(message)])
        return to_json(vectors[0])

    uvicorn.run(application, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
