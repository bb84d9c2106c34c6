"""Requests as any KServe v2 client would send them, below our own client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import np_to_triton_dtype

OPTIONS = {"dimensions": np.int32, "max_pixels": np.int32, "truncate": np.bool_}


class Wire:
    """A gRPC connection that sends exactly the tensors it is given."""

    def __init__(self, grpc_url: str) -> None:
        self.client = grpc.InferenceServerClient(grpc_url.removeprefix("grpc://"))

    def infer(self, model: str, tensors: dict[str, np.ndarray], outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Send tensors as they are and return the outputs."""
        inputs = []
        for name, value in tensors.items():
            tensor = grpc.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        requested = [grpc.InferRequestedOutput(name) for name in outputs] or None
        result = self.client.infer(model, inputs, outputs=requested)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def embed(self, model: str = "embed", **values: Any) -> dict[str, np.ndarray]:
        """Send lists of bytes as BYTES tensors, and options as tensors of one element."""
        tensors = {
            name: np.array([value], OPTIONS[name]) if name in OPTIONS else np.array(value, np.object_)
            for name, value in values.items()
        }
        return self.infer(model, tensors)
