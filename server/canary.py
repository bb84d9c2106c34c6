"""An embedding of a known text, which proves that a server works from the first step to the last."""

from __future__ import annotations

import json
import math
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException

from .network import HTTP

TEXT = "A canary sings."
INTERVAL_S = 5.0
TIMEOUT_S = 60.0
MAX_NORM_ERROR = 1e-3  # fp16 rounding of a unit vector is far below
OVERLOADED = 503


class CanaryError(Exception):
    """The text was not embedded, or not to a unit vector."""


def embed_canary(http_url: str, timeout_s: float) -> float:
    """Embed the canary's text, and return how many seconds that took.

    A server that refuses it because its queues are full passes: it works, and is busy.

    Raises
    ------
    CanaryError
        Any other answer than a unit vector, or none in time.
    """
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]
    request = urllib.request.Request(f"{http_url}/v2/models/embed_text/infer", json.dumps({"inputs": inputs}).encode())
    began_at = time.monotonic()
    try:
        with HTTP.open(request, timeout=timeout_s) as response:
            outputs = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
    except urllib.error.HTTPError as error:
        with error:
            answer = error.read().decode(errors="replace")
        if error.code != OVERLOADED:
            raise CanaryError(f"a text was not embedded: {answer}") from None
    except (OSError, HTTPException) as error:
        raise CanaryError(f"a text was not embedded ({error})") from None
    else:
        norm = math.hypot(*outputs["embedding"])
        if not abs(norm - 1) < MAX_NORM_ERROR:  # written so that NaN fails, too
            raise CanaryError(f"a text was embedded with norm {norm} instead of 1. Export the model again")
    return time.monotonic() - began_at


class Canary:
    """Embeds the text now and then, in a thread, while a `with` block lasts.

    Parameters
    ----------
    http_url
        Of a server that is ready.
    """

    def __init__(self, http_url: str) -> None:
        self._http_url = http_url
        self._stopped = threading.Event()
        self.failure = ""  # of the last one; empty if it was well
        self.num_failures = 0  # in a row
        self.seconds = 0.0  # that the last one took

    def __enter__(self) -> Canary:
        """Begin."""
        threading.Thread(target=self._sing, name="canary", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Begin no other one."""
        self._stopped.set()

    def _sing(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            try:
                self.seconds = embed_canary(self._http_url, TIMEOUT_S)
            except CanaryError as error:
                self.failure = str(error)
                self.num_failures += 1
            else:
                self.failure, self.num_failures = "", 0
