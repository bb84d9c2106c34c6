"""Where the weights of a graph are: in a file beside it, or in that of another graph of its folder that has them, too.

Variants of one precision have the same weights, which are gigabytes; equal is what has the same type, shape and bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

MIN_BYTES = 257  # smaller tensors stay in the graph

Key = tuple[ir.DataType, tuple[Any, ...]]  # type and shape


def save(model: ir.Model, path: Path) -> None:
    """Write a graph to `path`, and its weights to `<name>.data` unless a graph that is there already has written them.

    The weights of `model` then are those in the files.
    """
    initializers: list[Any] = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= MIN_BYTES
    ]
    stored = _stored_weights(path.parent, {_key(value.const_value) for value in initializers})
    new: list[Any] = []
    for value in initializers:
        same = stored.get(_digest(value.const_value)) if stored else None
        if same is None:
            new.append(value)
        else:
            value.const_value = ir.ExternalTensor(
                same.location,
                same.offset,
                same.length,
                same.dtype,
                shape=same.shape,
                name=value.name,
                base_dir=same.base_dir,
            )
    if new:
        tensors = convert_tensors_to_external([value.const_value for value in new], path.parent, f"{path.name}.data")
        for value, tensor in zip(new, tensors, strict=True):
            value.const_value = tensor
    ir.save(model, path)


def _stored_weights(folder: Path, keys: set[Key]) -> dict[bytes, ir.ExternalTensor]:
    """Return the weights that the graphs of a folder keep in files, where their type and shape is asked for."""
    return {
        _digest(value.const_value): value.const_value
        for path in sorted(folder.glob("*.onnx"))
        for graph in ir.load(path).graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor) and _key(value.const_value) in keys
    }


def _key(tensor: Any) -> Key:
    return tensor.dtype, tuple(tensor.shape)


def _digest(tensor: Any) -> bytes:
    return hashlib.sha256(repr(_key(tensor)).encode() + tensor.tobytes()).digest()
