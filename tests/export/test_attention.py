"""Packed attention: the torch operator and the ONNX function against torch's own attention, item by item."""

from __future__ import annotations

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

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Attend; every input is rank 1."""
        return torch.ops.vlembed.packed_attention(
            query.view(-1, 6, 8),
            key.view(-1, 2, 8),
            value.view(-1, 2, 8),
            lengths,
            lengths,
            self.causal,
            SCALE,
        ).flatten()


def inputs_of(lengths: list[int]) -> dict[str, torch.Tensor]:
    total = sum(lengths)
    return {
        "query": torch.randn(total * 2 * 3 * 8),
        "key": torch.randn(total * 2 * 8),
        "value": torch.randn(total * 2 * 8),
        "lengths": torch.tensor(lengths),
    }


def reference(inputs: dict[str, torch.Tensor], causal: bool) -> torch.Tensor:
    lengths = inputs["lengths"].tolist()
    outputs = []
    for query, key, value in zip(
        inputs["query"].view(-1, 2, 3, 8).split(lengths),
        inputs["key"].view(-1, 2, 8).split(lengths),
        inputs["value"].view(-1, 2, 8).split(lengths),
        strict=True,
    ):
        attended = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.transpose(0, 1)[:, None].expand(2, 3, -1, 8),
            value.transpose(0, 1)[:, None].expand(2, 3, -1, 8),
            is_causal=causal,
            scale=SCALE,
        )
        outputs.append(attended.permute(2, 0, 1, 3))
    return torch.cat(outputs).flatten()


@pytest.mark.parametrize("causal", [True, False])
def test_against_torch(causal: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attention(causal)
    to_onnx(module, inputs_of([3, 5]), "output", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for lengths in ([3, 5], [1], [1, 1, 1], [40, 1, 7, 2], [2 * BLOCK_ROWS + 9, 3, BLOCK_ROWS, BLOCK_ROWS + 1]):
        inputs = inputs_of(lengths)
        theirs = reference(inputs, causal)
        torch.testing.assert_close(module(**inputs), theirs)
        ours = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_items_of_no_rows_are_passed_over(tmp_path: Path) -> None:
    module = Attention(causal=True)
    to_onnx(module, inputs_of([3, 5]), "output", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = inputs_of([4, 2])
    with_empty = {**inputs, "lengths": torch.tensor([0, 4, 0, 2])}  # what the guard makes of an inconsistent request
    ours = session.run(None, {name: tensor.numpy() for name, tensor in with_empty.items()})[0]
    np.testing.assert_allclose(ours, reference(inputs, causal=True), atol=1e-5)
