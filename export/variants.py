"""What a repository may hold: both towers, rendered for one kind of hardware or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attention import fused_attention, looped_attention
from .operators import FusedOperators, Operators


@dataclass(frozen=True)
class Variant:
    """One rendering of both towers."""

    name: str
    graph: str  # file in the version folder of a tower
    precision: str  # of weights and computation, as users write it
    dtype: torch.dtype
    opset: int
    provider: str  # of ONNX Runtime
    operators: Operators
    attention: Callable[..., Any]  # `packed_attention` in ONNX
    min_cosine: float  # to transformers in float32: below, nothing is placed


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "cpu",
            "model.onnx",
            "fp32",
            torch.float32,
            opset=18,  # with IR 10: every ONNX Runtime since 1.17 and every Triton container since 24.03 loads it
            provider="CPUExecutionProvider",
            operators=Operators(),
            attention=looped_attention,
            min_cosine=0.9999,  # rounding only
        ),
        Variant(
            "cuda",
            "cuda.onnx",
            "bf16",
            torch.bfloat16,
            opset=20,  # the first with Gelu
            provider="CUDAExecutionProvider",
            operators=FusedOperators(),
            attention=fused_attention,
            min_cosine=0.998,  # transformers in bfloat16 comes to 0.9993 on random weights
        ),
    )
}
