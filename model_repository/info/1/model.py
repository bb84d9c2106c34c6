"""Info: what is served, as one JSON string: what export wrote beside this file, the bounds, and the versions.

The fingerprint names everything that a vector depends on: two servers with the same one give the same vectors, and an
index built with one can be searched with the other.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers every request with the same string."""

    def initialize(self, args: dict[str, str]) -> None:
        """Put the answer together once."""
        info = json.loads((Path(args["model_repository"]) / args["model_version"] / "info.json").read_text())
        parameters = json.loads(args["model_config"])["parameters"]
        info |= info.pop("variants")[parameters.pop("variant")["string_value"]]
        bounds = {name: int(value["string_value"]) for name, value in parameters.items()}
        pixels = f"{info['fingerprint']} {bounds['min_pixels']} {bounds['max_pixels']}"  # these change vectors, too
        info |= {"bounds": bounds, "fingerprint": hashlib.sha256(pixels.encode()).hexdigest()[:16]}
        self.answer = np.array([json.dumps(info).encode()], dtype=np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Give the answer."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        if not all(name.startswith("triton_") for name in json.loads(request.parameters() or "{}")):
            message = "info takes no request parameters. Leave them out."
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("info", self.answer)])
