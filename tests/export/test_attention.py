"""Packed attention: the torch operator and the ONNX function against torch's own attention, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product, zip_longest
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from export.attention import BLOCK_ROWS
from export.to_onnx import to_onnx

SCALE = 0.3


class Attention(torch.nn.Module):
    """The operator alone, with lengths as its only other input."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.num_keys = 2 if causal else 6

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_lengths: torch.Tensor,
        key_lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Attend; every input is rank 1."""
        return torch.ops.vlembed.packed_attention(
            query.view(-1, 6, 8),
            key.view(-1, self.num_keys, 8),
            value.view(-1, self.num_keys, 8),
            query_lengths,
            key_lengths,
            self.causal,
            SCALE,
        ).flatten()


def inputs_of(causal: bool, lengths: Sequence[int], known: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """Return queries of `lengths`, and as many keys; of `known` items more."""
    key_lengths = [length + more for length, more in zip_longest(lengths, known, fillvalue=0)]
    num_keys = sum(key_lengths)
    return {
        "query": torch.randn(sum(lengths) * 6 * 8),
        "key": torch.randn(num_keys * (2 if causal else 6) * 8),
        "value": torch.randn(num_keys * (2 if causal else 6) * 8),
        "query_lengths": torch.tensor(lengths),
        "key_lengths": torch.tensor(key_lengths),
    }


def reference(inputs: dict[str, torch.Tensor], causal: bool) -> torch.Tensor:
    outputs = []
    key_lengths = inputs["key_lengths"].tolist()
    for query, key, value in zip(
        inputs["query"].view(-1, 6, 8).split(inputs["query_lengths"].tolist()),
        inputs["key"].view(sum(key_lengths), -1, 8).split(key_lengths),
        inputs["value"].view(sum(key_lengths), -1, 8).split(key_lengths),
        strict=True,
    ):
        seen = torch.ones(len(query), len(key), dtype=torch.bool)
        attended = scaled_dot_product_attention(
            query.transpose(0, 1),
            key.transpose(0, 1),
            value.transpose(0, 1),
            attn_mask=seen.tril(len(key) - len(query)) if causal else seen,
            scale=SCALE,
            enable_gqa=True,
        )
        outputs.append(attended.transpose(0, 1))
    return torch.cat(outputs).flatten()


@pytest.mark.parametrize("causal", [True, False])
def test_against_torch(causal: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attention(causal)
    to_onnx(module, inputs_of(causal, [3, 5]), "output", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    cases = [[3, 5], [1], [1, 1, 1], [40, 1, 7, 2], [2 * BLOCK_ROWS + 9, 3, BLOCK_ROWS, BLOCK_ROWS + 1]]
    for lengths, known in product(cases, [(), (2, 0, 30, 1)] if causal else [()]):
        inputs = inputs_of(causal, lengths, known[: len(lengths)])
        theirs = reference(inputs, causal)
        torch.testing.assert_close(module(**inputs), theirs)
        ours = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_items_of_no_rows_are_passed_over(causal: bool, tmp_path: Path) -> None:
    module = Attention(causal)
    to_onnx(module, inputs_of(causal, [3, 5]), "output", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = inputs_of(causal, [4, 2])
    empty = torch.tensor([0, 4, 0, 2])  # what the guard makes of an inconsistent request
    with_empty = {**inputs, "query_lengths": empty, "key_lengths": empty}
    ours = session.run(None, {name: tensor.numpy() for name, tensor in with_empty.items()})[0]
    np.testing.assert_allclose(ours, reference(inputs, causal), atol=1e-5)
