"""What a repository may hold: both towers, rendered for a kind of hardware, in one of the precisions that it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .attention import fused_attention, looped_attention
from .checkpoint import ExportError
from .operators import CudaOperators, FusedOperators, Operators


@dataclass(frozen=True)
class Precision:
    """Of weights and computation."""

    name: str  # as users write it
    dtype: torch.dtype
    min_cosine: float  # to transformers in float32: below, nothing is placed


FP32 = Precision("fp32", torch.float32, min_cosine=0.9999)  # rounding only
BF16 = Precision("bf16", torch.bfloat16, min_cosine=0.998)  # transformers in bfloat16 comes to 0.9993 on random weights


@dataclass(frozen=True)
class Variant:
    """One rendering of both towers."""

    name: str
    graph: str  # file in the version folder of a tower
    precision: Precision
    precisions: tuple[Precision, ...]  # that it can be written in
    opset: int
    provider: str  # of ONNX Runtime
    operators: Operators
    attention: Callable[..., Any]  # `packed_attention` in ONNX


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "cpu",
            "model.onnx",
            FP32,
            (FP32,),
            opset=20,  # with IR 10: every ONNX Runtime since 1.17 and every Triton container since 24.03 loads it
            provider="CPUExecutionProvider",
            operators=FusedOperators(),
            attention=looped_attention,
        ),
        Variant(
            "cuda",
            "cuda.onnx",
            BF16,
            (BF16,),
            opset=20,  # the first with Gelu
            provider="CUDAExecutionProvider",
            operators=CudaOperators(),
            attention=fused_attention,
        ),
    )
}
PRECISIONS = sorted({precision.name for variant in VARIANTS.values() for precision in variant.precisions})


def choose_variants(names: Sequence[str], precisions: Sequence[str] = ()) -> list[Variant]:
    """Return variants by name, each in the one of `precisions` that it can be written in, or else in its own.

    Raises
    ------
    ExportError
        There is no such variant, or a precision is that of none, or two are those of one.
    """
    if unknown := set(names) - set(VARIANTS):
        raise ExportError(f"there is no variant {', '.join(sorted(unknown))}. Choose from {', '.join(VARIANTS)}.")
    chosen = []
    left_over = set(precisions)
    for variant in VARIANTS.values():
        if variant.name in names:
            wanted = [precision for precision in variant.precisions if precision.name in precisions]
            if len(wanted) > 1:
                raise ExportError(
                    f"the variant {variant.name} is written in one precision, not in "
                    f"{' and '.join(precision.name for precision in wanted)}. Write two repositories."
                )
            chosen.append(replace(variant, precision=wanted[0]) if wanted else variant)
            left_over -= {precision.name for precision in variant.precisions}
    if left_over:
        offered = "; ".join(
            f"{variant.name} in {' or '.join(precision.name for precision in variant.precisions)}" for variant in chosen
        )
        raise ExportError(f"no variant is written in {', '.join(sorted(left_over))}. There is {offered}.")
    return chosen
