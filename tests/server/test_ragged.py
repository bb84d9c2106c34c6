"""Ragged batches against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from server.backends.onnxruntime.ragged import Array, BatchError, Packing, count, scatter, split

ZERO_OFFSETS = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"


def config(max_batch_size: int = 8, ragged: bool = True, **changes: Any) -> dict[str, Any]:
    """Return what Triton hands to a backend, as far as it is read."""

    def tensor(name: str, dims: list[int], data_type: str) -> dict[str, Any]:
        return {"name": name, "dims": dims, "data_type": data_type, "allow_ragged_batch": ragged, "optional": False}

    return {
        "max_batch_size": max_batch_size,
        "input": [tensor("rows", [-1, 3], "TYPE_FP32"), tensor("lengths", [-1], "TYPE_INT32")],
        "output": [tensor("hidden", [-1, 2], "TYPE_FP32"), tensor("score", [1], "TYPE_FP32")],
        "batch_input": [
            {"kind": ZERO_OFFSETS, "target_name": ["offsets"], "data_type": "TYPE_INT32", "source_input": ["rows"]},
            {
                "kind": "BATCH_ELEMENT_COUNT",
                "target_name": ["counts"],
                "data_type": "TYPE_FP32",
                "source_input": ["lengths"],
            },
        ],
        "batch_output": [
            {"target_name": ["hidden"], "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "source_input": ["lengths"]}
        ],
    } | changes


def request(num_rows: int, lengths: list[int], start: int = 0) -> dict[str, Array]:
    rows = np.arange(start, start + 3 * num_rows, dtype=np.float32).reshape(1, num_rows, 3)
    return {"rows": rows, "lengths": np.array([lengths], np.int32)}


def test_ragged_inputs_are_laid_end_to_end() -> None:
    feeds = Packing.from_config(config()).pack(
        [request(1, [1]), request(2, [1, 1], start=10), request(1, [5], start=20)]
    )
    assert_array_equal(feeds["rows"], [0, 1, 2, 10, 11, 12, 13, 14, 15, 20, 21, 22])
    assert_array_equal(feeds["lengths"], [1, 1, 1, 5])
    assert_array_equal(feeds["offsets"], [0, 3, 9, 12])
    assert_array_equal(feeds["counts"], [1, 2, 1])
    types = {name: feed.dtype for name, feed in feeds.items()}
    assert types == {"rows": np.float32, "lengths": np.int32, "offsets": np.int32, "counts": np.float32}


def test_other_inputs_are_stacked_along_the_batch() -> None:
    packing = Packing.from_config(config(ragged=False, batch_input=[], batch_output=[]))
    feeds = packing.pack([request(2, [1]), request(2, [2], start=6)])
    assert_array_equal(feeds["rows"], np.arange(12).reshape(2, 2, 3))
    assert_array_equal(feeds["lengths"], [[1], [2]])


def test_one_request_is_a_batch() -> None:
    feeds = Packing.from_config(config()).pack([request(1, [1])])
    assert_array_equal(feeds["rows"], [0, 1, 2])
    assert_array_equal(feeds["offsets"], [0, 3])


SHAPES = [(1, 2, 3), (2, 1, 3), (1, 4, 3)]  # 6, 6 and 12 elements; 1, 2 and 1 batch items


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [6, 6, 12]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [6, 12, 24]),
        (ZERO_OFFSETS, [0, 6, 12, 24]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [0] * 12),
        ("BATCH_ITEM_SHAPE", [[2, 3], [1, 3], [1, 3], [4, 3]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [2, 3, 1, 3, 1, 3, 4, 3]),
    ],
)
def test_batch_input_kinds(kind: str, expected: list[Any]) -> None:
    assert_array_equal(count(kind, SHAPES), expected)


def test_counts_beyond_int32_are_refused() -> None:
    with pytest.raises(BatchError, match=r"2147483648 elements .* Lower max_batch_size"):
        count(ZERO_OFFSETS, [(1, 2**30), (1, 2**30)])


def test_scatter_takes_variable_dims_from_the_source() -> None:
    output = np.arange(12).reshape(6, 2)
    first, second, third = scatter(output, (-1, -1, 2), [(1, 1), (1, 3), (1, 2)])
    assert_array_equal(first, [[[0, 1]]])
    assert_array_equal(second, [[[2, 3], [4, 5], [6, 7]]])
    assert_array_equal(third, [[[8, 9], [10, 11]]])


def test_scatter_of_a_flat_output() -> None:
    first, second = scatter(np.arange(5), (-1, -1), [(1, 2), (1, 3)])
    assert_array_equal(first, [[0, 1]])
    assert_array_equal(second, [[2, 3, 4]])


@pytest.mark.parametrize("rows", [5, 7])
def test_scatter_refuses_what_does_not_add_up(rows: int) -> None:
    with pytest.raises(BatchError, match=f"{2 * rows} elements .* ask for 12"):
        scatter(np.zeros((rows, 2)), (-1, -1, 2), [(1, 4), (1, 2)])


def test_split_along_the_batch() -> None:
    first, second = split(np.arange(6).reshape(3, 2), [1, 2])
    assert_array_equal(first, [[0, 1]])
    assert_array_equal(second, [[2, 3], [4, 5]])


@pytest.mark.parametrize("rows", [2, 4])
def test_split_refuses_what_does_not_add_up(rows: int) -> None:
    with pytest.raises(BatchError, match=f"{rows} rows .* ask for 3"):
        split(np.zeros((rows, 2)), [1, 2])


def test_unpack_chooses_scatter_or_split() -> None:
    packing = Packing.from_config(config())
    requests = [request(1, [1, 1]), request(2, [2])]
    hidden = packing.unpack("hidden", np.arange(6).reshape(3, 2), requests)
    assert [part.shape for part in hidden] == [(1, 2, 2), (1, 1, 2)]
    score = packing.unpack("score", np.array([[7], [8]]), requests)
    assert [part.tolist() for part in score] == [[[7]], [[8]]]


def test_without_a_batch_the_output_is_the_answer() -> None:
    packing = Packing.from_config(config(max_batch_size=0, batch_output=[]))
    (whole,) = packing.unpack("score", np.arange(4), [{"rows": np.zeros((2, 3)), "lengths": np.zeros(1)}])
    assert_array_equal(whole, np.arange(4))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (request(0, [1]), r"'rows' has shape \[1, 0, 3\]: a ragged input needs at least one element"),
        (request(1, []), r"'lengths' has shape \[1, 0\]: a ragged input needs at least one element"),
        ({**request(1, [1]), "rows": np.zeros((1, 1, 4))}, r"'rows' has shape \[1, 1, 4\].* allows \[-1, -1, 3\]"),
        ({**request(1, [1]), "rows": np.zeros((1, 3))}, r"'rows' has shape \[1, 3\].* allows \[-1, -1, 3\]"),
    ],
)
def test_requests_that_are_refused(wrong: dict[str, Array], reason: str) -> None:
    packing = Packing.from_config(config())
    packing.check(request(1, [1]))
    with pytest.raises(BatchError, match=reason):
        packing.check(wrong)


@pytest.mark.parametrize("seed", range(5))
def test_every_request_gets_its_own_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    packing = Packing.from_config(
        config(
            output=[{"name": "rows_again", "dims": [-1, 3]}],
            batch_output=[
                {"target_name": ["rows_again"], "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "source_input": ["rows"]}
            ],
        )
    )
    requests = [request(n, [n], start=100 * n) for n in random.integers(1, 40, size=random.integers(1, 33)).tolist()]
    for ours, theirs in zip(
        packing.unpack("rows_again", packing.pack(requests)["rows"], requests), requests, strict=True
    ):
        assert_array_equal(ours, theirs["rows"])
