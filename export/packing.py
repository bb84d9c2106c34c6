"""Where each item and each request lies in a packed batch, and which requests contradict themselves.

A dynamic batch is many requests laid end to end. Its outer offsets are counted by the server and can be trusted; the
lengths inside a request come from a client and cannot. A request whose lengths do not add up is marked here, its items
are clamped to its own rows, and the towers answer it with NaN: it can never read or shift its neighbours. Where a
request has no elements in an input, the towers answer the whole batch with NaN.

Letters: R requests, n items of all requests, T rows (tokens, or visual tokens) of all requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Segments:
    """Items and requests of a packed batch, made consistent."""

    starts: torch.Tensor  # int64 (n,) first row of each item
    lengths: torch.Tensor  # int64 (n,) rows of each item; they always add up to T
    request_of_item: torch.Tensor  # int64 (n,)
    request_of_row: torch.Tensor  # int64 (T,)
    consistent: torch.Tensor  # bool (R,) False: the request's lengths do not add up to its rows


def find_segments(
    lengths: torch.Tensor, valid: torch.Tensor, item_offsets: torch.Tensor, row_offsets: torch.Tensor, num_rows: int
) -> Segments:
    """Lay out the items of a batch.

    Parameters
    ----------
    lengths : torch.Tensor, int64, shape = (n,)
        Rows that each item claims.
    valid : torch.Tensor, bool, shape = (n,)
        False for an item that is wrong in itself.
    item_offsets, row_offsets : torch.Tensor, int64, shape = (R + 1,)
        Where each request's items and rows begin; the server counted them.
    num_rows
        T.
    """
    request_of_item = segment_index(item_offsets[:-1], lengths.shape[0])
    claimed = count_per_segment(lengths, item_offsets)
    possible = valid & (lengths > 0) & (lengths <= num_rows)  # so that no sum of claims overflows
    invalid = count_per_segment((~possible).to(torch.int64), item_offsets)
    consistent = (claimed == row_offsets.diff()) & (invalid == 0)

    before = starts_of(lengths)
    first_item = item_offsets[request_of_item]
    trusted = before - before[first_item] + row_offsets[request_of_item]
    # All rows of an inconsistent request go to its first item, whatever its items claim.
    is_first = torch.arange(lengths.shape[0]) == first_item
    own = torch.where(is_first, row_offsets[request_of_item], row_offsets[request_of_item + 1])
    starts = torch.where(consistent[request_of_item], trusted, own)
    # Rows of a request without items fall to a neighbour's item, so that every row has one: see `none_empty`.
    bounds = torch.cat([row_offsets[:1], starts[1:], row_offsets[-1:]])
    return Segments(bounds[:-1], bounds.diff(), request_of_item, segment_index(row_offsets[:-1], num_rows), consistent)


def none_empty(*offsets: torch.Tensor) -> torch.Tensor:
    """Tell whether every request has elements in every input, bool of shape ().

    NVIDIA's onnxruntime backend stops filling an input's buffer at a request without elements. The rest of the buffer
    holds whatever lay there, which may be another client's data: only the offsets are then right, and no row of the
    batch can be trusted.

    Parameters
    ----------
    offsets : torch.Tensor, int32, shape = (R + 1,)
        Elements of each input before each request.
    """
    counts = torch.stack(offsets).to(torch.int64).diff()  # a sum that overflowed int32 shows as a negative count
    return (counts > 0).all()


def starts_of(lengths: torch.Tensor) -> torch.Tensor:
    """Return the exclusive cumulative sum, shape (n,)."""
    return lengths.cumsum(0) - lengths


def count_per_segment(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return the sums of `values` (T,) between consecutive `offsets` (R + 1,), shape (R,)."""
    running = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return running[offsets].diff()


def segment_index(starts: torch.Tensor, size: int) -> torch.Tensor:
    """Return, for each of `size` rows, the index of the segment it lies in; empty segments have none."""
    # Segments without rows write to a slot behind the end, for TensorRT adds up nothing that is scattered.
    num_segments = starts.shape[0]
    filled = torch.cat([starts[1:], torch.full((1,), size, dtype=starts.dtype)]) > starts
    at = torch.where(filled, starts, torch.full_like(starts, size))
    marks = starts.new_zeros(size + 1).scatter(0, at, torch.ones_like(starts))
    rank = torch.where(filled, filled.to(torch.int64).cumsum(0) - 1, torch.full_like(starts, num_segments))
    of_rank = starts.new_zeros(num_segments + 1).scatter(0, rank, torch.arange(num_segments))
    return of_rank[marks.cumsum(0)[:-1] - 1]


def nan_where(rows: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Replace the rows (T, D) marked in `wrong` (T,) by NaN."""
    return torch.where(wrong[:, None], torch.full((), float("nan"), dtype=rows.dtype), rows)
