"""Triton glue of `preprocess`: tensors in, `preprocessing.Preprocessor`, tensors or INVALID_ARG out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from metrics import Counters
from preprocessing import Abandoned, Bounds, PackError, Preprocessor, check_parameters


class TritonPythonModel:
    """One process of the preprocess step."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer and the settings that export put beside this file."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        self.counters = Counters()
        self.preprocessor = Preprocessor(folder, Bounds.from_parameters(parameters), self.counters.add_image)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: the error of one is nobody else's."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            check_parameters(json.loads(request.parameters() or "{}"))
            pack = self.preprocessor(
                text=_values(request, "text"),
                image=_values(request, "image"),
                instruction=_values(request, "instruction"),
                dimensions=_value(request, "dimensions"),
                max_pixels=_value(request, "max_pixels"),
                truncate=bool(_value(request, "truncate")),
                is_wanted=lambda: not request.is_cancelled(),
            )
        except Abandoned:
            self.counters.add_drop()
            return _error("the caller has gone", pb_utils.TritonError.CANCELLED)
        except PackError as error:
            self.counters.add_refusal(error.codes)
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        self.counters.add_pack(pack.num_text_tokens, pack.num_image_tokens)
        tensors = dict(vars(pack))
        requested = request.requested_output_names()
        if "image_embeds" in requested:
            tensors["image_embeds"] = np.zeros((1, 1, self.preprocessor.image_embeds_size), np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensors[name]) for name in requested])


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _values(request: Any, name: str) -> list[bytes] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else list(tensor.as_numpy())


def _value(request: Any, name: str) -> int | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else int(tensor.as_numpy()[0])
