"""A tower to an ONNX file: one dictionary of example inputs gives the trace, the names and the first run.

Knows torch.onnx; knows nothing of checkpoints or repositories.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from .variants import VARIANTS, Variant
from .weights import save

PATCH_SIZE = 6144  # bytes of one visual token: 2x2 patches x 3 channels x 2 frames x 16 x 16


def to_onnx(
    tower: nn.Module, inputs: dict[str, torch.Tensor], output_name: str, path: Path, variant: Variant = VARIANTS["cpu"]
) -> None:
    """Write `tower` to `path`, and its weights as `weights.save` does; every input is rank 1 of dynamic length."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        for noisy in ("torch.onnx", "onnxscript"):  # no torchvision; no folding of SequenceEmpty
            logging.getLogger(noisy).setLevel(logging.ERROR)
        program = torch.onnx.export(
            tower.eval(),
            kwargs=inputs,
            dynamic_shapes={name: {0: torch.export.Dim.AUTO} for name in inputs},
            output_names=[output_name],
            dynamo=True,
            opset_version=variant.opset,
            custom_translation_table={torch.ops.vlembed.packed_attention.default: variant.attention},
            verbose=False,
        )
    if program is None:  # cannot happen with dynamo=True; the type says so
        raise RuntimeError("torch.onnx.export returned no program.")
    if variant.provider != "CPUExecutionProvider":
        _drop_unused_outputs(program.model.graph)
        _copy_sizes(program.model.graph)
    save(program.model, path)


def _drop_unused_outputs(graph: ir.Graph) -> None:
    """Leave out the optional outputs of fused operators, which their kernels give in training only."""
    for node in graph:
        for output in node.outputs:
            if node.domain == "com.microsoft" and not output.uses() and not output.is_graph_output():
                output.name = ""


def _copy_sizes(graph: ir.Graph) -> None:
    """Make sizes by operators that copy.

    ONNX Runtime computes sizes on the CPU. Squeeze, Unsqueeze and Reshape only give a new view of a number there, and
    with CUDA, 1.31 took its memory for the next size while a kernel had yet to read it: slices had wrong lengths.
    """
    one = ir.Value(
        name="one_element", const_value=ir.tensor([1]), shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64)
    )
    for node in graph:
        if node.op_type not in ("Squeeze", "Unsqueeze", "Reshape") or not _is_size(node.inputs[0], node.outputs[0]):
            continue
        if node.outputs[0].shape == ir.Shape(()):
            node.resize_inputs(1)
            node.op_type = "ReduceSum"
            node.attributes.add(ir.AttrInt64("keepdims", 0))
        else:
            graph.initializers.add(one)
            node.resize_inputs(2)
            node.replace_input_with(1, one)
            node.op_type = "Expand"
            node.attributes.clear()


def _is_size(*values: ir.Value | None) -> bool:
    return all(
        value is not None
        and value.dtype == ir.DataType.INT64
        and value.shape is not None
        and value.shape.dims in ((), (1,))
        for value in values
    )


def example_vision_inputs() -> dict[str, torch.Tensor]:
    """Return two requests: two images of 2x4 and 4x2 patches, and one of 4x6."""
    grids = [(1, 2, 4), (1, 4, 2), (1, 4, 6)]
    num_tokens = [h * w // 4 for _, h, w in grids]
    return {
        "patches": torch.randint(0, 256, (sum(num_tokens) * PATCH_SIZE,), dtype=torch.uint8),
        "grid_thw": torch.tensor(grids, dtype=torch.int32).flatten(),
        "patches_offsets": _offsets([sum(num_tokens[:2]) * PATCH_SIZE, num_tokens[2] * PATCH_SIZE]),
        "grid_thw_offsets": _offsets([6, 3]),
    }


def example_language_inputs(vocab_size: int, image_token_id: int, image_embeds_size: int) -> dict[str, torch.Tensor]:
    """Return two requests: items of 5 and 7 tokens with 2 and 3 visual tokens, and one of 6 tokens with 2."""
    input_ids = torch.randint(0, vocab_size, (18,))
    input_ids[input_ids == image_token_id] = 0
    input_ids[[1, 2, 6, 7, 8, 13, 14]] = image_token_id
    return {
        "input_ids": input_ids,
        "position_ids": torch.arange(18, dtype=torch.int32).repeat_interleave(3),
        "lengths": torch.tensor([5, 7, 6], dtype=torch.int32),
        "image_embeds": torch.randn(7 * image_embeds_size),
        "input_ids_offsets": _offsets([12, 6]),
        "position_ids_offsets": _offsets([36, 18]),
        "lengths_offsets": _offsets([2, 1]),
        "image_embeds_offsets": _offsets([5 * image_embeds_size, 2 * image_embeds_size]),
    }


def _offsets(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
