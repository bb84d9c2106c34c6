"""Pooling: the hidden state at each item's last token -> its first d components at unit length.

Letters: n items of the pack, D hidden size, d requested dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

EPSILON = 1e-12  # as torch.nn.functional.normalize


class TritonPythonModel:
    """The last step of both ensembles."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pooled = pb_utils.get_input_tensor_by_name(request, "pooled").as_numpy()[0]  # (n, D) or (n+1, D)
        text_tokens, image_tokens = (
            pb_utils.get_input_tensor_by_name(request, f"num_{name}").as_numpy()
            for name in ("text_tokens", "image_tokens")
        )
        dimensions = pb_utils.get_input_tensor_by_name(request, "dimensions")
        size = pooled.shape[1] if dimensions is None else int(dimensions.as_numpy()[0])
        num_items = text_tokens.size
        if not 1 <= size <= pooled.shape[1] or num_items > len(pooled):
            message = (
                f"{num_items} items of {size} dimensions were asked of pooled {pooled.shape}. Call `embed` instead."
            )
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        prefix = pooled[:num_items, :size]  # drops the sentinel
        norm = np.linalg.norm(prefix, axis=1, keepdims=True)
        if not np.isfinite(norm).all():
            bad = np.flatnonzero(~np.isfinite(norm[:, 0])).tolist()
            message = (
                f"the language model gave no finite hidden state for items {bad}. Send them again: a request beside "
                "them may have had an empty tensor. If it happens again, report it with the server's log."
            )
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))
        outputs = {
            "embedding": prefix / np.maximum(norm, EPSILON),
            "text_tokens": text_tokens,
            "image_tokens": image_tokens,
        }
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]
        )
