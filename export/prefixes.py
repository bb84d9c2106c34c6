"""Beginnings that many items share: their keys and values are constants of the graph.

Items under one instruction begin with the same system turn. Attention is causal, so that its keys and values are the
same in each of them, and nothing else of its tokens is ever read: an item that begins like this is computed from the
first token behind. The vectors are the same, up to rounding.

Letters: n items, T tokens, B beginnings and P tokens of the longest, S tokens of all, K key heads, h head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .packing import Segments, segment_index, starts_of

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class Prefixes(nn.Module):
    """Known beginnings in the order of their lengths; number 0 is the empty one, which every item has."""

    ids: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor

    def __init__(self, beginnings: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.beginnings = [
            [],
            *sorted((list(tokens) for tokens in beginnings), key=lambda tokens: (len(tokens), tokens)),
        ]
        width = max(len(tokens) for tokens in self.beginnings)
        table = [[*tokens, *[-1] * (width - len(tokens))] for tokens in self.beginnings]
        lengths = torch.tensor([len(tokens) for tokens in self.beginnings])
        self.register_buffer("ids", torch.tensor(table), persistent=False)  # int64 (B, P), -1 behind the end
        self.register_buffer("lengths", lengths, persistent=False)  # int64 (B,)
        self.register_buffer("starts", starts_of(lengths), persistent=False)  # int64 (B,) first row of each in S

    def find(self, input_ids: torch.Tensor, positions: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Return the number of the longest beginning that each item has, and does not end with, int64 (n,).

        Parameters
        ----------
        input_ids : torch.Tensor, int64, shape = (T,)
        positions : torch.Tensor, int32, shape = (T, 3)
            An item that counts its first tokens in another way is computed in full.
        segments
            The items.
        """
        offset = torch.arange(self.ids.shape[1])  # (P,)
        row = (segments.starts[:, None] + offset).clamp(max=input_ids.shape[0] - 1)  # (n, P)
        in_order = (positions[row] == offset[:, None]).all(2)  # (n, P)
        same = (input_ids[row][:, None] == self.ids) & in_order[:, None]  # (n, B, P)
        begins = (same | (offset >= self.lengths[:, None])).all(2) & (segments.lengths[:, None] > self.lengths)
        return (begins * torch.arange(len(self.beginnings))).amax(1)

    def leave_out(
        self, number: torch.Tensor, segments: Segments, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tell what is left to compute.

        Parameters
        ----------
        number : torch.Tensor, int64, shape = (n,)
            From `find`.
        segments
            The items.
        num_tokens
            T.

        Returns
        -------
        rows : torch.Tensor, int64, shape = (T',)
            The tokens behind the known beginnings.
        lengths : torch.Tensor, int64, shape = (n,)
            How many they are in each item.
        sources : torch.Tensor, int64, shape = (T,)
            Of each token: the row of its key and value among S known ones and T' computed ones.
        """
        item = segment_index(segments.starts, num_tokens)  # (T,)
        offset = torch.arange(num_tokens) - segments.starts[item]
        is_left = offset >= self.lengths[number][item]
        known = self.starts[number][item] + offset
        computed = self.lengths.sum() + is_left.to(torch.int64).cumsum(0) - 1
        rows = is_left.nonzero()[:, 0]
        torch._check(rows.shape[0] <= num_tokens)
        return rows, segments.lengths - self.lengths[number], torch.where(is_left, computed, known)
