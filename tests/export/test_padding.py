"""Padded attention in a graph, against packed attention in torch: whatever the lengths, and at what cost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir import tape

from export.attention import packed_attention
from export.build_engines import find_profile
from export.padding import MAX_ROWS, RATIO, lengths_of_groups, pad_attention
from export.repository import TEMPLATE

HEADS, KEYS, HEAD_SIZE, SCALE = 4, 2, 8, 0.3
LONGEST = 600  # rows of an item that has a group
ATOL = 1e-5
Attention = tuple[bool, onnxruntime.InferenceSession]  # whether it is causal
OF_EVERY_GROUP = [1, 8, 9, 64, 65, 512, 513, 600]
EDGES = {
    "one row": [1],
    "one item": [70],
    "every group": OF_EVERY_GROUP,
    "every group, backwards": OF_EVERY_GROUP[::-1],
    "the last group alone": [600, 513],
    "no first group": [9, 64, 600],
    "without rows, first": [0, 5, 70],
    "without rows, in between": [5, 0, 0, 70],
    "without rows, last": [70, 5, 0],
    "crowd and a long one": [*[3] * 300, 600],
}


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "full"])
def attention(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attention:
    """Write a graph of two layers of attention, with the sizes of the padded queries as outputs."""
    path = tmp_path_factory.mktemp("padding") / "attention.onnx"
    num_keys = KEYS if request.param else HEADS  # of images, every query has its key
    shapes = {
        "query": (None, HEADS, HEAD_SIZE),
        "key": (None, num_keys, HEAD_SIZE),
        "value": (None, num_keys, HEAD_SIZE),
    }
    inputs = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, shape in shapes.items()
    ]
    ends = ir.Value(name="ends", shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.INT32))
    nodes = tape.Tape()
    attributes = {"query_form": "packed_nhd", "kv_form": "packed_nhd", "is_causal": int(request.param), "scale": SCALE}
    outputs = []
    for name in ("first", "second"):
        query = outputs[0] if outputs else inputs[0]
        operands = [query, *inputs[1:], None, ends, ends]
        outputs.append(nodes.op("Identity", [nodes.op("TRT_Attention", operands, attributes, domain="tensorrt")]))
        outputs[-1].name = name
        outputs[-1].type, outputs[-1].shape = inputs[0].type, inputs[0].shape
    graph = ir.Graph(
        [*inputs, ends], outputs, nodes=nodes.nodes, opset_imports={"": 24, "tensorrt": 1}, name="attention"
    )
    pad_attention(graph, LONGEST)
    sizes = tape.Tape()
    padded = [node.inputs[0] for node in graph if node.op_type == "Attention"]
    for index, query in enumerate(padded[: len(padded) // 2]):
        size = sizes.op("Shape", [query])
        size.name, size.type, size.shape = f"size_{index}", ir.TensorType(ir.DataType.INT64), ir.Shape([4])
        graph.outputs.append(size)
    graph.extend(sizes.nodes)
    ir.save(ir.Model(graph, ir_version=10), path)
    return request.param, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def random_operands(causal: bool, num_rows: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    heads = (HEADS, KEYS, KEYS) if causal else (HEADS,) * 3
    return [generator.standard_normal((num_rows, number, HEAD_SIZE), np.float32) for number in heads]


def run(session: onnxruntime.InferenceSession, operands: list[np.ndarray], lengths: list[int]) -> list[np.ndarray]:
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    return session.run(None, dict(zip(("query", "key", "value"), operands, strict=True)) | {"ends": ends})


def packed(causal: bool, operands: list[np.ndarray], lengths: list[int]) -> np.ndarray:
    query, key, value = map(torch.from_numpy, operands)
    sizes = torch.tensor([length for length in lengths if length])
    return packed_attention(query, key, value, sizes, sizes, causal, SCALE).numpy()


@pytest.mark.parametrize("lengths", [*EDGES.values(), *(None,) * 5], ids=[*EDGES, *map(str, range(5))])
def test_against_packed(attention: Attention, lengths: list[int] | None, request: pytest.FixtureRequest) -> None:
    causal, session = attention
    generator = np.random.default_rng(hash(request.node.callspec.id) % 2**32 if lengths is None else 0)
    lengths = lengths or np.minimum(generator.geometric(0.02, generator.integers(1, 60)), LONGEST).tolist()
    operands = random_operands(causal, sum(lengths))
    first, second, *sizes = run(session, operands, lengths)
    theirs = packed(causal, operands, lengths)
    np.testing.assert_allclose(first, theirs, atol=ATOL)
    np.testing.assert_allclose(second, packed(causal, [theirs, *operands[1:]], lengths), atol=ATOL)
    # a group without items still has a row
    assert sum(size[0] * size[2] for size in sizes) <= RATIO * sum(lengths) + len(sizes)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_item_that_is_too_long_is_nan_and_harms_nobody(attention: Attention, place: int) -> None:
    causal, session = attention
    lengths = [7, 600]
    lengths.insert(place, LONGEST + 1)
    start = sum(lengths[:place])
    own = slice(start, start + lengths[place])
    operands = random_operands(causal, sum(lengths))
    others = [np.delete(operand, own, axis=0) for operand in operands]
    expected = run(session, others, [7, 600])[1]
    second = run(session, operands, lengths)[1]
    assert np.isnan(second[own]).all()
    np.testing.assert_array_equal(np.delete(second, own, axis=0), expected)


def test_nothing_of_an_item_reaches_another(attention: Attention) -> None:
    causal, session = attention
    lengths = OF_EVERY_GROUP
    operands = random_operands(causal, sum(lengths))
    for item, end in enumerate(np.cumsum(lengths)):
        own = slice(end - lengths[item], end)
        spoilt = [operand.copy() for operand in operands]
        for operand in spoilt:
            operand[own] = np.nan
        second = run(session, spoilt, lengths)[1]
        assert np.isnan(second[own]).all() and np.isfinite(np.delete(second, own, axis=0)).all()


@pytest.mark.parametrize("width", [16 * 128, 32 * 128], ids=["2B", "8B"])
def test_the_largest_padded_tensor_is_counted_with_32_bits(width: int) -> None:
    """Beyond, TensorRT builds engines with implausible memory."""
    rows, items = {"input_ids": 1, "patches": 6144 // 4}, {"lengths": 1, "grid_thw": 3}  # elements of each
    for tower, output in (("language_model", "pooled"), ("vision_encoder", "image_embeds")):
        profile = find_profile(TEMPLATE, tower, smallest={})
        (num_rows,) = (profile[name][2] // size for name, size in rows.items() if name in profile)
        (num_items,) = (profile[name][2] // size for name, size in items.items() if name in profile)
        for low, high in lengths_of_groups(MAX_ROWS[output]):
            assert min(num_items, num_rows // (low + 1)) * high * width < 2**31
