"""Attention over packed sequences, restated because a loop over items cannot be traced.

One operator, `vlembed::packed_attention`: in torch, and in a rendering for each variant of the graphs. Each item
attends to itself at its own length; nothing outside this module knows how.

Letters: n items, T tokens of all items, L tokens of one, B queries of a block, H query heads, K key heads, G = H/K
queries per key, h head size.
"""

# onnxscript writes tensor types as FLOAT[...], which is no type to mypy:
# mypy: disable-error-code="type-arg, misc, no-any-return, operator"

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
    query : torch.Tensor, shape = (sum of query_lengths, H, h)
    key, value : torch.Tensor, shape = (sum of key_lengths, K, h)
    query_lengths, key_lengths : torch.Tensor, int64, shape = (n,)
    causal
        Whether a token sees only itself and those before it. The queries are then the item's last tokens.
    scale
        Factor on the scores.

    Returns
    -------
    torch.Tensor, shape = (sum of query_lengths, H, h)
    """
    num_keys = key.shape[1]
    outputs = []
    for q, k, v in zip(
        query.split(query_lengths.tolist()),
        key.split(key_lengths.tolist()),
        value.split(key_lengths.tolist()),
        strict=True,
    ):
        grouped = q.view(q.shape[0], num_keys, -1, q.shape[2]).permute(1, 2, 0, 3)  # (K, G, L, h)
        scores = (grouped * scale) @ k.permute(1, 2, 0)[:, None]  # (K, G, L, L)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + len(k) - len(q))
            scores = scores.masked_fill(later, float("-inf"))
        attended = scores.softmax(dim=-1) @ v.transpose(0, 1)[:, None]  # (K, G, L, h)
        outputs.append(attended.permute(2, 0, 1, 3).reshape(q.shape))
    return torch.cat(outputs)


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
    return query.new_empty(query.shape)


BLOCK_ROWS = 128  # of a square of scores, half of which are masked: smaller blocks compute less of that half
FUNCTIONS = Opset("vlembed", 1)
FUSED = Opset("com.microsoft", 1)
op: Any = opset18  # onnxscript's types are narrower than what its tracer takes


@script(FUNCTIONS, default_opset=opset18)
def causal_loop(
    query: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    query_lengths: INT64[...],
    key_lengths: INT64[...],
    scale: float,
) -> FLOAT[...]:
    """Attend causally on CPUs: one Loop iteration per block of an item's queries.

    Nothing is padded, and the scores of one block, not of the batch, bound the memory.
    """
    # (T, H, h) as (K, G, T, h), and (T, K, h) as (K, h, T) and (K, T, h)
    num_heads = op.Concat(op.Shape(key)[1:2], op.Constant(value_ints=[-1]), axis=0)
    queries = op.Transpose(
        op.Reshape(query, op.Concat(op.Shape(query)[0:1], num_heads, op.Shape(query)[2:3], axis=0), allowzero=1),
        perm=[1, 2, 0, 3],
    )
    keys = op.Transpose(key, perm=[1, 2, 0])
    values = op.Transpose(value, perm=[1, 0, 2])

    factor = op.CastLike(op.Constant(value_float=scale), query)
    zero = op.CastLike(op.Constant(value_float=0.0), query)
    minus_infinity = op.CastLike(op.Constant(value_float=float("-inf")), query)
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
    starts = stops - op.Gather(query_lengths, item) + (number - op.Gather(block_ends - blocks, item)) * rows
    later_queries = op.Max(stops - starts - rows, 0)
    key_stops = op.Gather(key_ends, item)
    key_starts = key_stops - op.Gather(key_lengths, item)
    key_stops = key_stops - later_queries  # no query of the block sees further
    stops = stops - later_queries
    outputs = op.SequenceEmpty()
    for block in range(op.Size(number)):
        at = op.Unsqueeze(block, [0])
        start, stop = op.Gather(starts, at), op.Gather(stops, at)
        key_start, key_stop = op.Gather(key_starts, at), op.Gather(key_stops, at)
        q = op.Slice(queries, start, stop, axis) * factor  # (K, G, B, h)
        k = op.Slice(keys, key_start, key_stop, axis)  # (K, h, L)
        v = op.Slice(values, key_start, key_stop, axis - 1)  # (K, L, h)
        num_keys = key_stop - key_start
        column = op.Range(0, op.Squeeze(num_keys), 1)  # (L,)
        row = op.Slice(column, num_keys - (stop - start), num_keys)  # (B,): the last keys are the block's own
        later = op.Unsqueeze(row, [1]) < op.Unsqueeze(column, [0])  # (B, L)
        mask = op.Where(later, minus_infinity, zero)
        # The G queries of a key are rows of one matrix: no key is repeated.
        shape = op.Shape(q)
        flat = op.Concat(shape[0:1], shape[1:2] * shape[2:3], shape[3:4], axis=0)
        square = op.Concat(shape[0:3], num_keys, axis=0)
        scores = op.MatMul(op.Reshape(q, flat, allowzero=1), k)  # (K, GB, L)
        weights = op.Softmax(op.Reshape(scores, square, allowzero=1) + mask, axis=-1)  # (K, G, B, L)
        attended = op.MatMul(op.Reshape(weights, op.Shape(scores), allowzero=1), v)  # (K, GB, h)
        outputs = op.SequenceInsert(outputs, op.Reshape(attended, shape, allowzero=1))
    together = op.Transpose(op.ConcatFromSequence(outputs, axis=2), perm=[2, 0, 1, 3])  # (T, K, G, h)
    return op.Reshape(together, op.Shape(query), allowzero=1)


@script(FUNCTIONS, default_opset=opset18)
def full_loop(
    query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], lengths: INT64[...], num_heads: int, scale: float
) -> FLOAT[...]:
    """Attend to all tokens on CPUs with ONNX Runtime's kernel, which holds no scores: one Loop iteration per item."""
    rows = op.Constant(value_ints=[0, 0, -1])
    queries = op.Reshape(op.Unsqueeze(query, [0]), rows)  # (1, T, H h)
    keys = op.Reshape(op.Unsqueeze(key, [0]), rows)
    values = op.Reshape(op.Unsqueeze(value, [0]), rows)
    axis = op.Constant(value_ints=[1])
    ends = op.CumSum(lengths, 0)
    items = op.Transpose(op.NonZero(lengths))  # (n, 1); an item without rows has no part in the output
    outputs = op.SequenceEmpty()
    for item in range(op.Squeeze(op.Shape(items)[0:1])):
        at = op.Gather(items, item)
        stop = op.Gather(ends, at)
        start = stop - op.Gather(lengths, at)
        attended = FUSED.MultiHeadAttention(
            op.Slice(queries, start, stop, axis),
            op.Slice(keys, start, stop, axis),
            op.Slice(values, start, stop, axis),
            num_heads=num_heads,
            scale=scale,
        )
        outputs = op.SequenceInsert(outputs, attended)
    return op.Reshape(op.ConcatFromSequence(outputs, axis=1), op.Shape(query), allowzero=1)


def looped_attention(
    query: Any, key: Any, value: Any, query_lengths: Any, key_lengths: Any, causal: bool, scale: float
) -> Any:
    """`packed_attention` for CPUs; without a mask, every query is a key."""
    if causal:
        return causal_loop(query, key, value, query_lengths, key_lengths, scale=scale)
    return full_loop(query, key, value, key_lengths, num_heads=query.shape[1], scale=scale)


PAGE_ROWS = 256  # the smallest page that FlashAttention reads at every head size


@script(FUNCTIONS, default_opset=opset18)
def paged_attention(
    query: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    lengths: INT64[...],
    num_heads: int,
    num_keys: int,
    head_size: int,
    scale: float,
) -> FLOAT[...]:
    """Attend causally with ONNX Runtime's kernel for packed sequences, on pages that are made for one run."""
    shape = op.Shape(query)
    flat = op.Constant(value_ints=[0, -1])
    zero = op.Constant(value_ints=[0])
    longest = op.ReduceMax(lengths)  # (1,)
    ends = op.Cast(op.Concat(zero, op.CumSum(lengths, 0), axis=0), to=6)  # (n + 1,)
    pages = (lengths + (PAGE_ROWS - 1)) / PAGE_ROWS  # of each item
    num_pages = op.ReduceSum(pages)
    column = op.Range(0, op.ReduceMax(pages, keepdims=0), 1)
    table = op.Unsqueeze(op.CumSum(pages, 0) - pages, [1]) + op.Unsqueeze(column, [0])  # (n, pages of the longest)
    # Every page is written before it is read. Two fillings, or ONNX Runtime would take both for one tensor.
    cache = op.Concat(
        num_pages,
        op.Constant(value_ints=[PAGE_ROWS]),
        op.Reshape(op.Constant(value_int=num_keys), [1]),
        op.Reshape(op.Constant(value_int=head_size), [1]),
        axis=0,
    )
    keys = op.Expand(op.CastLike(op.Constant(value_float=0.0), query), cache)
    values = op.Expand(op.CastLike(op.Constant(value_float=1.0), query), cache)
    attended = FUSED.PagedAttention(
        op.Reshape(query, flat),
        op.Reshape(key, flat),
        op.Reshape(value, flat),
        keys,
        values,
        ends,
        op.Cast(lengths - lengths, to=6),  # rows of earlier runs
        op.Cast(op.Min(table, num_pages - 1), to=6),
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        # Rows of the longest query and key: no launch is wider. ONNX Runtime has this input since 1.29; without it,
        # current ones launch blocks for as many rows as the batch has tokens, for every item.
        op.Cast(op.Concat(longest, longest, axis=0), to=6),
        num_heads=num_heads,
        kv_num_heads=num_keys,
        scale=scale,
    )
    return op.Reshape(attended, shape)


@script(FUNCTIONS, default_opset=opset18)
def packed_half_attention(
    query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], lengths: INT64[...], num_heads: int, scale: float
) -> FLOAT[...]:
    """Attend to all tokens with ONNX Runtime's kernel for packed sequences, which knows float16 alone."""
    flat = op.Constant(value_ints=[0, -1])
    zero = op.Constant(value_ints=[0])
    ends = op.Cast(op.Concat(zero, op.CumSum(lengths, 0), axis=0), to=6)  # (n + 1,)
    size = op.Concat(op.Shape(lengths), op.ReduceMax(lengths), axis=0)
    padded = op.Expand(op.Cast(zero, to=6), size)  # the kernel reads nothing of it but its shape
    attended = FUSED.PackedMultiHeadAttention(
        op.Cast(op.Reshape(query, flat), to=10),
        op.Cast(op.Reshape(key, flat), to=10),
        op.Cast(op.Reshape(value, flat), to=10),
        None,
        padded,
        ends,
        num_heads=num_heads,
        scale=scale,
    )
    return op.Reshape(op.CastLike(attended, query), op.Shape(query))


def fused_attention(
    query: Any, key: Any, value: Any, query_lengths: Any, key_lengths: Any, causal: bool, scale: float
) -> Any:
    """`packed_attention` for CUDA, where every query is a key."""
    if causal:
        return paged_attention(
            query,
            key,
            value,
            key_lengths,
            num_heads=query.shape[1],
            num_keys=key.shape[1],
            head_size=key.shape[2],
            scale=scale,
        )
    return packed_half_attention(query, key, value, key_lengths, num_heads=query.shape[1], scale=scale)
