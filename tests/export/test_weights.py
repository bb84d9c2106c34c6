"""The weights of several graphs in one folder: what is equal is stored once, and what differs is not mixed up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir import tape

from export.checkpoint import Checkpoint
from export.language_model import LanguageModel
from export.operators import Operators
from export.to_onnx import example_language_inputs, to_onnx
from export.variants import VARIANTS
from export.weights import save


def write(path: Path, **weights: np.ndarray) -> None:
    """Write a graph that multiplies by each of its weights, and sums."""
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    tape_ = tape.Tape()
    products = []
    for name, weight in weights.items():
        initializer = tape_.initializer(ir.tensor(weight, name=name))
        product = tape_.op("Mul", [x, initializer])
        products.append(tape_.op("ReduceSum", [product], {"keepdims": 0}))
    total = tape_.op("Sum", products)
    total.name = "total"
    graph = ir.Graph([x], [total], nodes=tape_.nodes, initializers=tape_.initializers, opset_imports={"": 20}, name="g")
    total.type, total.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    save(ir.Model(graph, ir_version=10), path)


def total(path: Path) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.ones(1, np.float32)})[0].item())


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    first, second, third = (np.arange(start, start + 100, dtype=np.float32) for start in (0, 1, 2))
    write(tmp_path / "a.onnx", first=first, second=second)
    assert (tmp_path / "a.onnx.data").stat().st_size == 800
    write(tmp_path / "b.onnx", another_name=second, third=third)
    assert (tmp_path / "b.onnx.data").stat().st_size == 400  # the third alone
    write(tmp_path / "c.onnx", third=third, first=first)
    assert not (tmp_path / "c.onnx.data").exists()
    sums = [first.sum() + second.sum(), second.sum() + third.sum(), third.sum() + first.sum()]
    assert [total(tmp_path / f"{name}.onnx") for name in "abc"] == sums


@pytest.mark.parametrize("other", [np.zeros((10, 10), np.float32), np.full(100, -0.0, np.float32)])
def test_weights_that_differ_in_shape_or_bits_are_not_shared(tmp_path: Path, other: np.ndarray) -> None:
    write(tmp_path / "a.onnx", weight=np.zeros(100, np.float32))
    write(tmp_path / "b.onnx", weight=other)
    assert (tmp_path / "b.onnx.data").stat().st_size == 400


def test_two_renderings_of_a_tower_share_its_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.load_model().language_model
    image_token_id = checkpoint.config.image_token_id
    inputs = example_language_inputs(checkpoint.vocab_size, image_token_id, checkpoint.image_embeds_size)
    outputs = []
    for name, operators in ("fused", VARIANTS["cpu"].operators), ("plain", Operators()):
        variant = replace(VARIANTS["cpu"], operators=operators)
        tower = LanguageModel(model, image_token_id, checkpoint.num_deepstack, operators)
        to_onnx(tower, inputs, "pooled", tmp_path / f"{name}.onnx", variant)
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    torch.testing.assert_close(*map(torch.from_numpy, outputs))
    both = [
        {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        for path in tmp_path.glob("*.onnx")
    ]
    assert both[0] != both[1]  # two graphs indeed
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert (tmp_path / "fused.onnx.data").stat().st_size > 0.99 * weights  # but for small ones
    rest = tmp_path / "plain.onnx.data"
    assert not rest.exists() or rest.stat().st_size < weights / 100
