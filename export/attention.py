"""Attention over packed sequences, restated because a loop over items cannot be traced.

One operator, twice: in torch as `vlembed::packed_attention`, and as the ONNX function it is exported to. Each item
attends to itself at its own length, so nothing is padded and one item's scores, not the batch's, bound the memory.

Letters: n items, T tokens of all items, L tokens of one, H query heads, K key heads, G = H/K queries per key, h head
size.
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
    """`packed_attention` as an ONNX function: one Loop iteration per item."""
    factor = op.CastLike(op.Constant(value_float=scale), query)
    queries = op.SplitToSequence(op.Mul(query, factor), query_lengths, axis=2)
    keys = op.SplitToSequence(key, key_lengths, axis=2)
    values = op.SplitToSequence(value, key_lengths, axis=1)
    outputs = op.SequenceEmpty()
    is_causal = op.Cast(op.Constant(value_int=causal), to=9)
    for i in range(op.Size(query_lengths)):
        q = op.SequenceAt(queries, i)  # (K, G, L, h)
        k = op.SequenceAt(keys, i)  # (K, h, L)
        v = op.SequenceAt(values, i)  # (K, L, h)
        shape = op.Shape(q)
        # The G queries of a key are rows of one matrix: no key is repeated.
        flat = op.Concat(shape[0:1], shape[1:2] * shape[2:3], shape[3:4], axis=0)
        rows = op.Reshape(q, flat, allowzero=1)  # (K, GL, h)
        scores = op.MatMul(rows, k)  # (K, GL, L)
        if is_causal:
            index = op.Range(0, op.Squeeze(shape[2:3]), 1)
            later = op.Less(op.Unsqueeze(index, [1]), op.Unsqueeze(index, [0]))  # (L, L)
            minus_infinity = op.CastLike(op.Constant(value_float=float("-inf")), query)
            square = op.Concat(shape[0:3], shape[2:3], axis=0)
            masked = op.Where(later, minus_infinity, op.Reshape(scores, square, allowzero=1))
            scores = op.Reshape(masked, op.Shape(scores), allowzero=1)
        attended = op.MatMul(op.Softmax(scores, axis=-1), v)  # (K, GL, h)
        outputs = op.SequenceInsert(outputs, op.Reshape(attended, shape, allowzero=1))
    return op.ConcatFromSequence(outputs, axis=2)
