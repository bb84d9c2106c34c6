"""Attention over packed sequences, restated because a loop over items cannot be traced.

One operator, twice: in torch as `vlembed::packed_attention`, and as the ONNX function it is exported to. Each item
attends to itself at its own length, a block of queries at a time: nothing is padded, and the scores of one block, not
of the batch, bound the memory.

Letters: n items, T tokens of all items, L tokens of one, B queries of a block, H query heads, K key heads, G = H/K
queries per key, h head size.
"""

# onnxscript writes tensor types as FLOAT[...], which is no type to mypy:
# mypy: disable-error-code="type-arg, misc, no-any-return"

from __future__ import annotations

from typing import Any

import torch
from onnxscript import FLOAT, INT64, opset18, script
from onnxscript.values import Opset


@torch.library.custom_op("vlembed::packed_attention", mutates_args=())
def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_lengths: torch.Tensor,
    key_lengths: torch.Tensor,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """Attend within each item.

    Parameters
    ----------
    query : torch.Tensor, shape = (K, G, sum of query_lengths, h)
    key : torch.Tensor, shape = (K, h, sum of key_lengths)
    value : torch.Tensor, shape = (K, sum of key_lengths, h)
    query_lengths, key_lengths : torch.Tensor, int64, shape = (n,)
        Equal for causal attention.
    causal
        Whether token i sees only tokens 0 ... i of its item.
    scale
        Factor on the scores.

    Returns
    -------
    torch.Tensor, shape = (K, G, sum of query_lengths, h)
    """
    outputs = []
    for q, k, v in zip(
        query.split(query_lengths.tolist(), dim=2),
        key.split(key_lengths.tolist(), dim=2),
        value.split(key_lengths.tolist(), dim=1),
        strict=True,
    ):
        scores = (q * scale) @ k[:, None]  # (K, G, L, L)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        outputs.append(scores.softmax(dim=-1) @ v[:, None])
    return torch.cat(outputs, dim=2)


@packed_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_lengths: torch.Tensor,
    key_lengths: torch.Tensor,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    return torch.empty_like(query)


BLOCK_ROWS = 512  # 16 heads x 512 queries x 8192 keys are 256 MiB of float32
FUNCTIONS = Opset("vlembed", 1)
op: Any = opset18  # onnxscript's types are narrower than what its tracer takes


@script(FUNCTIONS, default_opset=opset18)
def packed_attention_onnx(
    query: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    query_lengths: INT64[...],
    key_lengths: INT64[...],
    causal: int,
    scale: float,
) -> FLOAT[...]:
    """`packed_attention` as an ONNX function: one Loop iteration per block of an item's queries."""
    factor = op.CastLike(op.Constant(value_float=scale), query)
    is_causal = op.Cast(op.Constant(value_int=causal), to=9)
    axis = op.Constant(value_ints=[2])  # of the rows
    rows = op.Constant(value_int=BLOCK_ROWS)
    query_ends = op.CumSum(query_lengths, 0)
    key_ends = op.CumSum(key_lengths, 0)
    blocks = (query_lengths + (rows - 1)) / rows  # of each item; none of an item without rows
    block_ends = op.CumSum(blocks, 0)
    # Of every block: its number, its item, and where its queries and keys begin and end.
    number = op.Range(0, op.ReduceSum(blocks, keepdims=0), 1)
    before = op.Cast(op.Unsqueeze(block_ends, [0]) <= op.Unsqueeze(number, [1]), to=7)
    item = op.ReduceSum(before, [1], keepdims=0)  # as many items lie before the block
    stops = op.Gather(query_ends, item)
    item_starts = stops - op.Gather(query_lengths, item)
    starts = item_starts + (number - op.Gather(block_ends - blocks, item)) * rows
    stops = op.Min(starts + rows, stops)
    key_stops = op.Gather(key_ends, item)
    key_starts = key_stops - op.Gather(key_lengths, item)
    if is_causal:
        key_stops = key_starts + (stops - item_starts)  # no query of the block sees further
    outputs = op.SequenceEmpty()
    for block in range(op.Size(number)):
        at = op.Unsqueeze(block, [0])
        start, stop = op.Gather(starts, at), op.Gather(stops, at)
        key_start, key_stop = op.Gather(key_starts, at), op.Gather(key_stops, at)
        q = op.Slice(query, start, stop, axis) * factor  # (K, G, B, h)
        k = op.Slice(key, key_start, key_stop, axis)  # (K, h, L)
        v = op.Slice(value, key_start, key_stop, axis - 1)  # (K, L, h)
        # The G queries of a key are rows of one matrix: no key is repeated.
        shape = op.Shape(q)
        flat = op.Concat(shape[0:1], shape[1:2] * shape[2:3], shape[3:4], axis=0)
        scores = op.MatMul(op.Reshape(q, flat, allowzero=1), k)  # (K, GB, L)
        if is_causal:
            num_keys = key_stop - key_start
            column = op.Range(0, op.Squeeze(num_keys), 1)  # (L,)
            row = op.Slice(column, num_keys - (stop - start), num_keys)  # (B,): the last keys are the block's own
            later = op.Unsqueeze(row, [1]) < op.Unsqueeze(column, [0])  # (B, L)
            minus_infinity = op.CastLike(op.Constant(value_float=float("-inf")), query)
            square = op.Concat(shape[0:3], num_keys, axis=0)
            masked = op.Where(later, minus_infinity, op.Reshape(scores, square, allowzero=1))
            scores = op.Reshape(masked, op.Shape(scores), allowzero=1)
        attended = op.MatMul(op.Softmax(scores, axis=-1), v)  # (K, GB, h)
        outputs = op.SequenceInsert(outputs, op.Reshape(attended, shape, allowzero=1))
    return op.ConcatFromSequence(outputs, axis=2)
