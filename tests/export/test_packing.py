"""Items and requests of a packed batch, against the same worked out in plain Python."""

from __future__ import annotations

import itertools

import pytest
import torch

from export.packing import count_per_segment, find_segments, nan_where, none_empty, segment_index


def offsets(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)])


def segments_of(requests: list[list[int]], rows: list[int]) -> object:
    lengths = torch.tensor([length for request in requests for length in request])
    item_offsets = offsets([len(request) for request in requests])
    return find_segments(lengths, torch.ones_like(lengths, dtype=torch.bool), item_offsets, offsets(rows), sum(rows))


@pytest.mark.parametrize("requests", [[[1]], [[3, 1, 2]], [[1], [1], [1]], [[5, 2], [7], [1, 1, 1, 4]]])
def test_consistent_requests_lie_as_they_say(requests: list[list[int]]) -> None:
    segments = segments_of(requests, [sum(request) for request in requests])
    lengths = [length for request in requests for length in request]
    assert segments.lengths.tolist() == lengths
    assert segments.starts.tolist() == [0, *itertools.accumulate(lengths)][:-1]
    assert segments.request_of_item.tolist() == [i for i, request in enumerate(requests) for _ in request]
    assert segments.request_of_row.tolist() == [i for i, request in enumerate(requests) for _ in range(sum(request))]
    assert segments.consistent.all()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [[4], [6], [0, 5], [-1, 6], [5, 5], [2**31 - 1, 1], [1, 1], [9, -4]])
def test_an_inconsistent_request_keeps_to_its_own_rows(bad: list[int], place: int) -> None:
    requests, rows = [[2, 3], [4]], [5, 4]
    requests.insert(place, bad)
    rows.insert(place, 5)
    segments = segments_of(requests, rows)
    assert segments.consistent.tolist() == [i != place for i in range(3)]
    assert segments.lengths.sum() == sum(rows)
    begin = sum(rows[:place])
    for item, (start, length) in enumerate(zip(segments.starts.tolist(), segments.lengths.tolist(), strict=True)):
        if segments.request_of_item[item] == place:
            assert begin <= start and length >= 0 and start + length <= begin + 5
    honest = [int(length) for item, length in enumerate(segments.lengths) if segments.request_of_item[item] != place]
    assert honest == [2, 3, 4]


def test_invalid_items_make_their_request_inconsistent() -> None:
    lengths, valid = torch.tensor([2, 2, 2]), torch.tensor([True, True, False])
    segments = find_segments(lengths, valid, offsets([1, 2]), offsets([2, 4]), 6)
    assert segments.consistent.tolist() == [True, False]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_rows_without_items_keep_the_layout_whole(place: int) -> None:
    requests, rows = [[2, 3], [4]], [5, 4]
    requests.insert(place, [])
    rows.insert(place, 5)
    segments = segments_of(requests, rows)
    assert segments.consistent.tolist() == [i != place for i in range(3)]
    assert segments.starts.tolist() == [0, *itertools.accumulate(segments.lengths.tolist())][:-1]
    assert segments.lengths.sum() == sum(rows)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[3, 1], [6, 2]], True),
        ([[0, 1], [6, 2]], False),
        ([[3, 1], [6, 0]], False),
        ([[3, 0], [6, 0]], False),
        ([[2**31 - 1, 2**31 - 1], [6, 2]], False),  # the second offset overflows
    ],
)
def test_none_empty(counts: list[list[int]], expected: bool) -> None:
    every = [offsets(request).to(torch.int32) for request in counts]
    assert none_empty(*every).item() is expected


def test_segment_index_and_counts() -> None:
    assert segment_index(torch.tensor([0, 2, 2, 5]), 6).tolist() == [0, 0, 2, 2, 2, 3]
    assert count_per_segment(torch.tensor([1, 0, 1, 1]), offsets([1, 3])).tolist() == [1, 2]


def test_nan_where() -> None:
    rows = nan_where(torch.ones(3, 2), torch.tensor([False, True, False]))
    assert rows.isnan().all(dim=1).tolist() == [False, True, False]
