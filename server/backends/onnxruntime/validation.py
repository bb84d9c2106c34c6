"""Does a model config agree with its ONNX graph? The rules of the stock backend, and one it lacks: scattered outputs.

Pure: knows parsed configs and the names, types and dims of a graph; nothing of Triton or ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ragged import Packing, fit

GRAPH_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph; a dim that the graph leaves open is -1."""

    type: str
    dims: tuple[int, ...]


def find_problems(
    config: dict[str, Any], inputs: Mapping[str, GraphTensor], outputs: Mapping[str, GraphTensor]
) -> Iterator[str]:
    """Yield a sentence for each thing that a config asks and its graph does not give.

    Parameters
    ----------
    config
        Model config as Triton hands it to a backend: parsed JSON.
    inputs, outputs
        Of the graph, by name.
    """
    packing = Packing.from_config(config)
    yield from _input_problems(config, packing, inputs)
    yield from _output_problems(config, packing, outputs)


def _input_problems(config: dict[str, Any], packing: Packing, graph: Mapping[str, GraphTensor]) -> Iterator[str]:
    types = {tensor["name"]: tensor["data_type"] for tensor in config["input"]}
    types |= {name: entry["data_type"] for entry in config["batch_input"] for name in entry["target_name"]}
    if len(graph) != len(config["input"]) + len(config["batch_input"]):
        yield (
            f"the graph has {len(graph)} inputs {sorted(graph)}, the config has {len(config['input'])} inputs and "
            f"{len(config['batch_input'])} batch_inputs {sorted(types)}"
        )
    if 0 < len(packing.ragged) < len(config["input"]):
        yield f"only {sorted(packing.ragged)} are ragged: all inputs must be, or none"
    for name, data_type in types.items():
        yield from _type_problems("input", name, data_type, graph)
    for tensor in config["input"]:
        name, dims = tensor["name"], packing.input_dims[tensor["name"]]
        if tensor["optional"] or "reshape" in tensor:
            yield f"input '{name}' is optional or reshaped, which this backend does not serve"
        if name not in graph:
            continue
        if name in packing.ragged and graph[name].dims != (-1,):
            yield f"ragged input '{name}' must have dims [-1] in the graph, not {list(graph[name].dims)}"
        if name not in packing.ragged and not fit(dims, graph[name].dims):
            yield f"input '{name}' has dims {list(dims)} in the config, {list(graph[name].dims)} in the graph"


def _output_problems(config: dict[str, Any], packing: Packing, graph: Mapping[str, GraphTensor]) -> Iterator[str]:
    for tensor in config["output"]:
        name, dims = tensor["name"], packing.output_dims[tensor["name"]]
        yield from _type_problems("output", name, tensor["data_type"], graph)
        if "reshape" in tensor:
            yield f"output '{name}' is reshaped, which this backend does not serve"
        if name not in graph:
            continue
        given = graph[name].dims
        if name not in packing.scatter_source:
            if given != dims:
                yield f"output '{name}' has dims {list(dims)} in the config, {list(given)} in the graph"
            continue
        if given not in ((-1,), tuple(tensor["dims"])):  # the stock backend does not look, and reads foreign memory
            yield f"scattered output '{name}' has dims {tensor['dims']} in the config, {list(given)} in the graph"
        rank = len(packing.input_dims[packing.scatter_source[name]])
        if -1 in dims[rank:]:
            yield f"scattered output '{name}' has variable dims beyond those of '{packing.scatter_source[name]}'"
    for name in packing.scatter_source.keys() - packing.output_dims.keys():
        yield f"batch_output '{name}' is not an output of the config"


def _type_problems(side: str, name: str, data_type: str, graph: Mapping[str, GraphTensor]) -> Iterator[str]:
    if name not in graph:
        yield f"{side} '{name}' is not in the graph, which has {sorted(graph)}"
    elif GRAPH_TYPES.get(data_type) != graph[name].type:
        yield f"{side} '{name}' is {data_type} in the config, {graph[name].type} in the graph"
