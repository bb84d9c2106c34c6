"""Many requests into one batch and back, as the stock onnxruntime backend does it.

Pure numpy: knows nothing of Triton or ONNX Runtime. A request is a mapping from input names to arrays with the batch
dimension in front. A ragged input reaches the graph as the elements of all requests, flattened and laid end to end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Request = Mapping[str, Array]
Shape = Sequence[int]

COUNT_TYPES: dict[str, npt.DTypeLike] = {
    "TYPE_INT32": np.int32,
    "TYPE_FP32": np.float32,
}  # all that a batch_input may be


class BatchError(ValueError):
    """A request that cannot be served, or outputs that cannot be dealt out to the requests."""


@dataclass(frozen=True)
class BatchInput:
    """A tensor that the server counts for the graph."""

    kind: str
    target_name: str
    source_input: str
    dtype: npt.DTypeLike


@dataclass(frozen=True)
class Packing:
    """How a config wants its batches made; every `dims` includes the batch dimension."""

    batched: bool  # False: max_batch_size is 0, and tensors have no batch dimension
    input_dims: dict[str, tuple[int, ...]]
    ragged: frozenset[str]
    batch_inputs: tuple[BatchInput, ...]
    output_dims: dict[str, tuple[int, ...]]
    scatter_source: dict[str, str]  # output -> the input whose shape it follows

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Packing:
        """Read a model config as Triton hands it to a backend: parsed JSON."""
        batch_dim = (-1,) if config["max_batch_size"] else ()

        def dims(tensors: list[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
            return {tensor["name"]: (*batch_dim, *tensor["dims"]) for tensor in tensors}

        return cls(
            batched=config["max_batch_size"] > 0,
            input_dims=dims(config["input"]),
            ragged=frozenset(tensor["name"] for tensor in config["input"] if tensor["allow_ragged_batch"]),
            batch_inputs=tuple(
                BatchInput(entry["kind"], target, entry["source_input"][0], COUNT_TYPES[entry["data_type"]])
                for entry in config["batch_input"]
                for target in entry["target_name"]
            ),
            output_dims=dims(config["output"]),
            scatter_source={
                target: entry["source_input"][0] for entry in config["batch_output"] for target in entry["target_name"]
            },
        )

    def check(self, request: Request) -> None:
        """Refuse a request that the graph could not tell from its neighbours.

        Raises
        ------
        BatchError
            A shape contradicts the config, or a ragged input has no elements: the stock backend accepts that and
            then corrupts the other requests of the batch.
        """
        for name, dims in self.input_dims.items():
            shape = request[name].shape
            if not fit(shape, dims):
                raise BatchError(f"input '{name}' has shape {list(shape)}, but the config allows {list(dims)}.")
            if name in self.ragged and request[name].size == 0:
                raise BatchError(f"input '{name}' has shape {list(shape)}: a ragged input needs at least one element.")

    def pack(self, requests: Sequence[Request]) -> dict[str, Array]:
        """Make the graph's inputs out of requests that passed `check`."""
        feeds = {
            name: np.concatenate(
                [request[name].reshape(-1) if name in self.ragged else request[name] for request in requests]
            )
            for name in self.input_dims
        }
        for entry in self.batch_inputs:
            shapes = [request[entry.source_input].shape for request in requests]
            feeds[entry.target_name] = count(entry.kind, shapes).astype(entry.dtype)
        return feeds

    def unpack(self, name: str, output: Array, requests: Sequence[Request]) -> list[Array]:
        """Deal an output of the graph out to the requests of its batch.

        Raises
        ------
        BatchError
            The output is not exactly as large as the requests together.
        """
        if name in self.scatter_source:
            shapes = [request[self.scatter_source[name]].shape for request in requests]
            return scatter(output, self.output_dims[name], shapes)
        if not self.batched:
            return [output]
        first = next(iter(self.input_dims))
        return split(output, [len(request[first]) for request in requests])


def count(kind: str, shapes: Sequence[Shape]) -> Array:
    """Count what a `batch_input` of this kind promises the graph.

    Parameters
    ----------
    kind
        A `BatchInput.Kind` of Triton's model configuration.
    shapes
        Of the source input in each of R requests, batch dimension first.

    Returns
    -------
    numpy.ndarray
        Shape (R,), (R + 1,) with a zero in front, (largest count,) of zeros, (batch items, rank - 1) or that flattened.
    """
    counts = [math.prod(shape) for shape in shapes]
    if sum(counts) > np.iinfo(np.int32).max:
        raise BatchError(f"{sum(counts)} elements in a batch are more than INT32 counts. Lower max_batch_size.")
    match kind:
        case "BATCH_ELEMENT_COUNT":
            return np.array(counts)
        case "BATCH_ACCUMULATED_ELEMENT_COUNT":
            return np.cumsum(counts)
        case "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
            return np.cumsum([0, *counts])
        case "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
            return np.zeros(max(counts))
        case "BATCH_ITEM_SHAPE" | "BATCH_ITEM_SHAPE_FLATTEN":
            items = np.array([shape[1:] for shape in shapes for _ in range(shape[0])])
            return items if kind == "BATCH_ITEM_SHAPE" else items.reshape(-1)
    raise ValueError(f"unknown batch_input kind {kind!r}")


def scatter(output: Array, dims: Shape, shapes: Sequence[Shape]) -> list[Array]:
    """Cut an output into one array per request, each variable dim being that of the source input at the same place.

    Parameters
    ----------
    output
        Whole batch, any shape.
    dims
        Of one request's output, batch dimension first; -1 is variable.
    shapes
        Of the source input in each request.

    Raises
    ------
    BatchError
        The parts do not add up to the output. The stock backend would read past its end.
    """
    targets = [tuple(shape[axis] if dim == -1 else dim for axis, dim in enumerate(dims)) for shape in shapes]
    sizes = [math.prod(target) for target in targets]
    if sum(sizes) != output.size:
        raise BatchError(f"the graph gave {output.size} elements where the requests' shapes ask for {sum(sizes)}.")
    parts = np.split(output.reshape(-1), np.cumsum(sizes)[:-1])
    return [part.reshape(target) for part, target in zip(parts, targets, strict=True)]


def split(output: Array, batch_sizes: Sequence[int]) -> list[Array]:
    """Cut an output into one array per request along its first dimension.

    Raises
    ------
    BatchError
        The batch sizes do not add up to the rows. The stock backend fails on too few and drops what is too much.
    """
    rows = len(output)
    if rows != sum(batch_sizes):
        raise BatchError(f"the graph gave {rows} rows where the requests' batch sizes ask for {sum(batch_sizes)}.")
    return np.split(output, np.cumsum(batch_sizes)[:-1])


def fit(shape: Shape, dims: Shape) -> bool:
    """Tell whether a shape obeys dims, in which -1 stands for any size."""
    return len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))
