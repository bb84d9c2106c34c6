"""Triton's model control, for the launcher alone: close the models that clients call, and see when they are empty.

A stopping tritonserver refuses the requests that its ensembles make of their next steps, so that what is in flight
fails. A model that is unloaded takes no new requests and finishes those that it has; its steps stay open for them.
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException

from .network import HTTP

HEADER = "vlembed-control"
TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.05


class Control:
    """The right to unload models of one server, which nobody else has: its key is made at random for each start."""

    def __init__(self) -> None:
        self._key = secrets.token_hex(16)

    def flags(self) -> list[str]:
        """Return the arguments of tritonserver that load every model and close its control to others."""
        return [
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--http-restricted-api=model-repository:{HEADER}={self._key}",
            f"--grpc-restricted-protocol=model-repository:{HEADER}={self._key}",
        ]

    def drain(self, http_url: str, models: Iterable[str], timeout_s: float) -> bool:
        """Unload models, and wait until the requests that they have begun are finished; tell whether they are."""
        names, deadline = list(models), time.monotonic() + timeout_s
        try:
            for name in names:
                self._post(http_url, f"models/{name}/unload")
            while self._loaded(http_url) & set(names):
                if time.monotonic() > deadline:
                    return False
                time.sleep(POLL_INTERVAL_S)
        except (OSError, HTTPException):  # it has died, or hangs
            return False
        return True

    def _loaded(self, http_url: str) -> set[str]:
        """Return the models that are not, or not yet wholly, unloaded."""
        index = json.loads(self._post(http_url, "index"))
        return {model["name"] for model in index if model.get("state", "UNAVAILABLE") != "UNAVAILABLE"}

    def _post(self, http_url: str, path: str) -> bytes:
        request = urllib.request.Request(f"{http_url}/v2/repository/{path}", b"{}", {HEADER: self._key})
        with HTTP.open(request, timeout=TIMEOUT_S) as response:
            answer: bytes = response.read()
            return answer
