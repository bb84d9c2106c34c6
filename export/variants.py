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
    # To transformers in float32, at the worst and on average, and of an item alone to the same item in a batch: below,
    # nothing is placed.
    min_cosine: float
    mean_cosine: float
    min_alone: float
    in_integers: bool = False  # the linear layers


FP32 = Precision("fp32", torch.float32, 0.9999, 0.9999, 0.9999)  # rounding only
BF16 = Precision("bf16", torch.bfloat16, 0.998, 0.998, 0.998)  # transformers in bfloat16: 0.9993 on random weights
INT8 = Precision("int8", torch.float32, 0.995, 0.999, 0.9999, in_integers=True)


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

    def bounded(self, min_cosine: float) -> Variant:
        """Return the variant with another bound on the cosine to transformers."""
        return replace(self, precision=replace(self.precision, min_cosine=min_cosine, mean_cosine=min_cosine))


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "cpu",
            "model.onnx",
            FP32,
            (FP32, INT8),
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
