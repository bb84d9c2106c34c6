"""Serve a vlembed model repository: checked before, and proved by one embedding after the start."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from http.client import HTTPException

from .errors import ServerStartError
from .gpu import check_gpus
from .locate import find_server
from .process import HTTP, TritonProcess
from .repository import check_repository, needs_gpu

CANARY_TEXT = "A canary sings."
CANARY_TIMEOUT_S = 300.0  # the first request pays for lazy allocations
MAX_NORM_ERROR = 1e-3  # fp16 rounding of a unit vector is far below

__all__ = ["ServerStartError", "TritonServer"]


class TritonServer(TritonProcess):
    """Serve a vlembed model repository while a `with` block lasts.

    Parameters and errors are those of `TritonProcess`; the repository must be one that export wrote.
    """

    def __enter__(self) -> TritonServer:
        """Start the server; return when it has embedded a text."""
        check_repository(self.repository, self.model_config_name)
        if needs_gpu(self.repository, self.model_config_name):
            check_gpus(find_server())
        super().__enter__()
        try:
            self._embed_canary()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _embed_canary(self) -> None:
        inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [CANARY_TEXT]}]
        request = urllib.request.Request(
            f"{self.http_url}/v2/models/embed_text/infer", data=json.dumps({"inputs": inputs}).encode()
        )
        try:
            with HTTP.open(request, timeout=CANARY_TIMEOUT_S) as response:
                outputs = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
        except urllib.error.HTTPError as error:
            with error:
                answer = error.read().decode()
            raise ServerStartError(f"the models loaded, but a text was not embedded: {answer}") from None
        except (OSError, HTTPException) as error:
            raise ServerStartError(
                f"the models loaded, but a text was not embedded ({error}):\n{self._log.failure()}"
            ) from None
        norm = math.hypot(*outputs["embedding"])
        if not abs(norm - 1) < MAX_NORM_ERROR:  # written so that NaN fails, too
            raise ServerStartError(
                f"the models loaded, but a text was embedded with norm {norm} instead of 1. Export the model again."
            )
