"""The second rendering of attention for TensorRT: padded, for cards where its builder has no kernel for packed items.

Takes a graph with the packed operator and makes it one of standard operators over the same weights. Only attention is
padded. Items are grouped by length, each group padded to its own longest item, so that no item takes more than `RATIO`
times its length: one item of 8,192 tokens among 2,000 short ones costs little more than by itself.

Padding repeats an item's own last row, so that no item ever reads another's. A row of an item that is longer than the
last group's bound is NaN.

Letters: n items, T rows of all items, g items of a group, L rows of its longest, H query heads, h head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from bounds import Bounds

RATIO = 8  # of the longest to the shortest item of a group
BOUNDS = Bounds()
PATCH_PIXELS = 16 * 16
MAX_ROWS = {"image_embeds": BOUNDS.max_pixels // PATCH_PIXELS, "pooled": BOUNDS.max_tokens}  # of an item, by output


def lengths_of_groups(max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield, for each group, what its items are longer than, and the longest."""
    low = 0
    while low < max_rows:
        high = min(max(low, 1) * RATIO, max_rows)
        yield low, high
        low = high


def pad_attention(graph: ir.Graph, max_rows: int) -> None:
    """Replace packed attention in a graph by padded attention to items of up to `max_rows` rows."""
    attentions = [node for node in graph if node.op_type == "TRT_Attention"]
    nodes = _Nodes()
    padding = _Padding(nodes, rows_of=_input(attentions[0], 0), ends=_input(attentions[0], 4), max_rows=max_rows)
    for node in attentions:
        query, key, value = (_input(node, index) for index in range(3))
        causal, scale = bool(node.attributes["is_causal"].as_int()), node.attributes["scale"].as_float()
        attended = padding.attend(query, key, value, causal, scale)
        graph.insert_before(node, nodes.take())
        ir.convenience.replace_all_uses_with(node.outputs, [attended])
        graph.remove(node, safe=True)
    graph.opset_imports.pop(attentions[0].domain)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}.")
    return value


class _Nodes:
    """New nodes of a graph, in order."""

    def __init__(self) -> None:
        self._tape = ir.tape.Tape()
        self._taken = 0

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node and return its output."""
        return self._tape.op(op_type, inputs, attributes)

    def constant(self, value: int | float | Sequence[int], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Append a constant."""
        return self("Constant", value=ir.tensor(value, dtype))

    def take(self) -> list[ir.Node]:
        """Return the nodes that were not taken yet."""
        new = list(self._tape.nodes)[self._taken :]
        self._taken += len(new)
        return new


class _Padding:
    """Where the rows of a batch lie in its padded groups, and back."""

    def __init__(self, op: _Nodes, rows_of: ir.Value, ends: ir.Value, max_rows: int) -> None:
        self.op = op
        zero, one = op.constant(0), op.constant(1)
        self.num_rows = op("Shape", rows_of, start=0, end=1)  # (1,)
        ends = op("Cast", ends, to=ir.DataType.INT64)
        self.starts = op("Slice", ends, op.constant([0]), op.constant([-1]), op.constant([0]))  # (n,)
        self.lengths = op(
            "Sub", op("Slice", ends, op.constant([1]), op.constant([2**31 - 1]), op.constant([0])), self.starts
        )
        num_items = op("Shape", self.lengths)
        self.item = op("Range", zero, op("Squeeze", num_items), one)
        no_item = op("Expand", zero, op("Add", num_items, one))  # (n + 1,): one slot more, for what has no place
        self.groups = []
        # Of each row: its number among the padded rows of all groups, -1 at first.
        places = op("Expand", op.constant(-1), op("Add", self.num_rows, one))
        base = op.constant([0])
        for low, high in lengths_of_groups(max_rows):
            group = self._group(low, high, no_item)
            places = self._number(places, base, *group)
            base = op("Add", base, op("Size", group[1]))
            self.groups.append(group)
        places = op("Slice", places, op.constant([0]), self.num_rows, op.constant([0]))  # (T,)
        self.places = op("Where", op("Less", places, zero), base, places)  # behind all groups: NaN

    def _group(self, low: int, high: int, no_item: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Lay out the items of more than `low` and up to `high` rows: lengths (g,) and row numbers (g, L)."""
        op = self.op
        zero, one = op.constant(0), op.constant(1)
        own = op(
            "And", op("Greater", self.lengths, op.constant(low)), op("LessOrEqual", self.lengths, op.constant(high))
        )
        numbers = op("Cast", own, to=ir.DataType.INT64)
        num_items = op("Shape", self.lengths)
        slot = op("Where", own, op("Sub", op("CumSum", numbers, zero), one), num_items)
        items = op("ScatterElements", no_item, slot, self.item, axis=0)
        count = op("ReduceSum", numbers, keepdims=0)
        # A group without items has one of no length. The builder takes its memory by the bounds on both sizes.
        most = op("Squeeze", op("Min", num_items, op("Div", self.num_rows, op.constant([low + 1]))))
        rank = op("Range", zero, op("Max", op("Min", count, most), one), one)  # (g,)
        items = op("Gather", items, rank)
        length = op("Where", op("Less", rank, count), op("Gather", self.lengths, items), zero)
        longest = op("ReduceMax", op("Where", own, self.lengths, one), keepdims=0)
        row = op("Range", zero, op("Min", longest, op.constant(high)), one)  # (L,)
        start = op("Unsqueeze", op("Gather", self.starts, items), op.constant([1]))
        inside = op("Min", row, op("Unsqueeze", op("Max", op("Sub", length, one), zero), op.constant([1])))  # (g, L)
        return length, op("Min", op("Add", start, inside), op("Sub", self.num_rows, one))

    def _number(self, places: ir.Value, base: ir.Value, length: ir.Value, rows: ir.Value) -> ir.Value:
        """Write into `places` where the rows of a group's items are."""
        op = self.op
        size = op("Shape", rows, start=1, end=2)
        row = op("Range", op.constant(0), op("Squeeze", size), op.constant(1))
        is_own = op("Less", op("Unsqueeze", row, op.constant([0])), op("Unsqueeze", length, op.constant([1])))
        at = op("Reshape", op("Where", is_own, rows, self.num_rows), op.constant([-1]))
        number = op("Add", op("Range", op.constant(0), op("Size", at), op.constant(1)), base)
        return op("ScatterElements", places, at, number, axis=0)

    def attend(self, query: ir.Value, key: ir.Value, value: ir.Value, causal: bool, scale: float) -> ir.Value:
        """Attend within each item, (T, H, h)."""
        op = self.op
        outputs = []
        for length, rows in self.groups:
            heads_first = [op("Transpose", op("Gather", x, rows), perm=[0, 2, 1, 3]) for x in (query, key, value)]
            # Causal attention needs no lengths, for no query sees the padding behind it.
            lengths = [] if causal else [None, None, None, op("Max", length, op.constant(1))]
            attended = op("Attention", *heads_first, *lengths, is_causal=int(causal), scale=scale)
            attended = op("Transpose", attended, perm=[0, 2, 1, 3])  # (g, L, H, h)
            outputs.append(
                op("Reshape", attended, op("Concat", op.constant([-1]), op("Shape", query, start=1), axis=0))
            )
        nan = op("CastLike", op.constant(float("nan"), ir.DataType.FLOAT), query)
        one_row = op("Concat", op.constant([1]), op("Shape", query, start=1), axis=0)
        outputs.append(op("Expand", nan, one_row))
        return op("Gather", op("Concat", *outputs, axis=0), self.places)
