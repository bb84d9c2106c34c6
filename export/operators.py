"""The steps between the matrix products, restated where ONNX Runtime has one kernel for several operators.

`Operators` are torch's own, and become standard ONNX operators. `FusedOperators` compute the same and become the fused
operators of ONNX Runtime, which its CUDA kernels have in float32, float16 and bfloat16.

Letters: T tokens or patches, A heads, h head size, D hidden size, I intermediate size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import silu
from transformers.models.qwen3_vl.modeling_qwen3_vl import rotate_half

Rotary = tuple[torch.Tensor, torch.Tensor]


class Operators:
    """Torch's own operators."""

    attends_from_some = True  # packed_attention takes fewer queries than keys

    def rms_norm(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension of x by its root mean square."""
        normed: torch.Tensor = norm(x)
        return normed

    def add_rms_norm(self, norm: Any, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of a sum (T, D), and the sum."""
        x = x + added
        return self.rms_norm(norm, x), x

    def add_layer_norm(self, norm: Any, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of a sum (T, D), and the sum."""
        x = x + added
        return norm(x), x

    def rotary(self, angles: torch.Tensor, dtype: torch.dtype) -> Rotary:
        """Return what `rotate` takes for angles (T, h / 2)."""
        both = angles.repeat(1, 2)
        return both.cos()[:, None].to(dtype), both.sin()[:, None].to(dtype)  # (T, 1, h)

    def rotate(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Turn every head of x (T, A, h) by its token's angles."""
        cos, sin = rotary
        rotated: torch.Tensor = x * cos + rotate_half(x) * sin
        return rotated

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, (T, I)."""
        return silu(gate) * up


class FusedOperators(Operators):
    """ONNX Runtime's fused operators where they are traced, torch's own where they run."""

    def rms_norm(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension of x by its root mean square."""
        if not torch.compiler.is_exporting():
            return super().rms_norm(norm, x)
        attributes = {"axis": -1, "epsilon": norm.variance_epsilon, "stash_type": 1}
        return symbolic("SimplifiedLayerNormalization", [x, norm.weight], attributes, x.shape)

    def rotary(self, angles: torch.Tensor, dtype: torch.dtype) -> Rotary:
        """Return what `rotate` takes for angles (T, h / 2)."""
        return angles.cos().to(dtype), angles.sin().to(dtype)  # (T, h / 2)

    def rotate(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Turn every head of x (T, A, h) by its token's angles."""
        cos, sin = rotary
        if not torch.compiler.is_exporting():
            return super().rotate(x, (cos.repeat(1, 2)[:, None], sin.repeat(1, 2)[:, None]))
        num_tokens, num_heads, head_size = x.shape
        flat = x.reshape(1, num_tokens, num_heads * head_size)
        attributes = {"num_heads": num_heads, "rotary_embedding_dim": head_size, "interleaved": 0}
        position = torch.arange(num_tokens)[None]  # the angles are a table with a row for each token
        return symbolic("com.microsoft::RotaryEmbedding", [flat, position, cos, sin], attributes, flat.shape).view(
            x.shape
        )

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, (T, I)."""
        if not torch.compiler.is_exporting():
            return super().silu_mul(gate, up)
        return symbolic("com.microsoft::QuickGelu", [gate], {"alpha": 1.0}, gate.shape) * up


class CudaOperators(FusedOperators):
    """Sums with their norms, too, and attention from every token."""

    attends_from_some = False

    def add_rms_norm(self, norm: Any, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of a sum (T, D), and the sum."""
        if not torch.compiler.is_exporting():
            return super().add_rms_norm(norm, x, added)
        return _add_norm("SkipSimplifiedLayerNormalization", [added, x, norm.weight], norm.variance_epsilon)

    def add_layer_norm(self, norm: Any, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of a sum (T, D), and the sum."""
        if not torch.compiler.is_exporting():
            return super().add_layer_norm(norm, x, added)
        return _add_norm("SkipLayerNormalization", [added, x, norm.weight, norm.bias], norm.eps)


def symbolic(
    name: str,
    inputs: list[torch.Tensor],
    attributes: dict[str, Any],
    shape: Any,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Trace an operator of ONNX or of ONNX Runtime; of the type of the first input, unless `dtype` says another."""
    return torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype or inputs[0].dtype, shape=tuple(shape), version=1
    )


def _add_norm(name: str, inputs: list[torch.Tensor], epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    dtype, shape = inputs[0].dtype, inputs[0].shape
    statistics = (*shape[:-1], 1)  # mean and deviation, which nobody reads
    normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
        f"com.microsoft::{name}",
        inputs,
        {"epsilon": epsilon},
        dtypes=[dtype, torch.float32, torch.float32, dtype],
        shapes=[shape, statistics, statistics, shape],
        version=1,
    )
    return normed, total
