"""Attention over packed sequences, restated because a loop over items cannot be traced.

One operator, twice: in torch as `vlembed::packed_attention`, and as the ONNX function it is exported to. Each item
attends to itself at its own length, so nothing is padded and one item's scores, not the batch's, bound the memory.

Letters: n items, T tokens of all items, L tokens of one, H query heads, K key heads, G = H/K queries per key, h head
size.
"""

from __future__ import annotations

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
    factor = opset18.CastLike(opset18.Constant(value_float=scale), query)
    queries = opset18.SplitToSequence(opset18.Mul(query, factor), query_lengths, axis=2)
    keys = opset18.SplitToSequence(key, key_lengths, axis=2)
    values = opset18.SplitToSequence(value, key_lengths, axis=1)
    outputs = opset18.SequenceEmpty()
    is_causal = opset18.Cast(opset18.Constant(value_int=causal), to=9)
    for i in range(opset18.Size(query_lengths)):
        q = opset18.SequenceAt(queries, i)  # (K, G, L, h)
        k = opset18.SequenceAt(keys, i)  # (K, h, L)
        v = opset18.SequenceAt(values, i)  # (K, L, h)
        shape = opset18.Shape(q)
        # The G queries of a key are rows of one matrix: no key is repeated.
        flat = opset18.Concat(shape[0:1], shape[1:2] * shape[2:3], shape[3:4], axis=0)
        rows = opset18.Reshape(q, flat, allowzero=1)  # (K, GL, h)
        scores = opset18.MatMul(rows, k)  # (K, GL, L)
        if is_causal:
            index = opset18.Range(0, opset18.Squeeze(shape[2:3]), 1)
            later = opset18.Less(opset18.Unsqueeze(index, [1]), opset18.Unsqueeze(index, [0]))  # (L, L)
            minus_infinity = opset18.CastLike(opset18.Constant(value_float=float("-inf")), query)
            square = opset18.Concat(shape[0:3], shape[2:3], axis=0)
            masked = opset18.Where(later, minus_infinity, opset18.Reshape(scores, square, allowzero=1))
            scores = opset18.Reshape(masked, opset18.Shape(scores), allowzero=1)
        attended = opset18.MatMul(opset18.Softmax(scores, axis=-1), v)  # (K, GL, h)
        outputs = opset18.SequenceInsert(outputs, opset18.Reshape(attended, shape, allowzero=1))
    return opset18.ConcatFromSequence(outputs, axis=2)
