"""The steps between the matrix products, restated where ONNX Runtime has one kernel for several operators.

`Operators` are torch's own, and become standard ONNX operators. `FusedOperators` compute the same and become the fused
operators of ONNX Runtime, which its CUDA kernels have in float32, float16 and bfloat16.

Letters: T tokens or patches, A heads, h head size, D hidden size, I intermediate size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import silu
from transformers.models.qwen3_vl.modeling_qwen3_vl import rotate_half

Rotary = tuple[torch.Tensor, torch.Tensor]
MAX_ROTARY_WIDTH = 1024  # threads of a CUDA block: the kernel takes one for each number of a head


class Operators:
    """Torch's own operators."""

    attends_from_some = True  # packed_attention takes fewer queries than keys

    def head_order(self, rows: torch.Tensor, head_size: int) -> torch.Tensor:
        """Put the rows (A h, ...) of a projection to queries or keys in the order that `rotate` takes."""
        return rows

    def rotary(self, angles: torch.Tensor, dtype: torch.dtype, num_heads: int) -> Rotary:
        """Return what `rotate` takes for angles (T, h / 2), where the heads turned at a time are a multiple."""
        both = angles.repeat(1, 2)
        return both.cos()[:, None].to(dtype), both.sin()[:, None].to(dtype)  # (T, 1, h)

    def rotate(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Turn every head of x (T, A, h) by its token's angles."""
        cos, sin = rotary
        rotated: torch.Tensor = x * cos + rotate_half(x) * sin
        return rotated

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Divide the last dimension of x by its root mean square, in float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return weight * wide.to(x.dtype)

    def add_rms_norm(self, norm: Any, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of a sum (T, D), and the sum."""
        x = x + added
        return self.rms_norm(x, norm.weight, norm.variance_epsilon), x

    def add_layer_norm(self, norm: Any, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of a sum (T, D), and the sum."""
        x = x + added
        return norm(x), x

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, (T, I)."""
        return silu(gate) * up


class FusedOperators(Operators):
    """ONNX Runtime's fused operators where they are traced, torch's own where they run.

    The halves of a head that turn together lie side by side. So several heads are one to the kernel for rotation, whose
    blocks of threads would be too small for a GPU otherwise.
    """

    attends_from_some = False

    def head_order(self, rows: torch.Tensor, head_size: int) -> torch.Tensor:
        """Put the rows (A h, ...) of a projection to queries or keys in the order that `rotate` takes."""
        halves = rows.unflatten(0, (-1, 2, head_size // 2))  # (A, 2, h / 2, ...)
        return halves.transpose(1, 2).flatten(0, 2).contiguous()

    def rotary(self, angles: torch.Tensor, dtype: torch.dtype, num_heads: int) -> Rotary:
        """Return what `rotate` takes for angles (T, h / 2), where the heads turned at a time are a multiple."""
        together = math.gcd(num_heads, MAX_ROTARY_WIDTH // (2 * angles.shape[1]))
        return angles.cos().to(dtype).repeat(1, together), angles.sin().to(dtype).repeat(1, together)

    def rotate(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Turn every head of x (T, A, h) by its token's angles."""
        cos, sin = rotary
        num_tokens, width = x.shape[0], 2 * cos.shape[1]
        flat = x.reshape(1, num_tokens, x.shape[1] * x.shape[2])
        if not torch.compiler.is_exporting():
            even, odd = flat[0].unflatten(1, (-1, width // 2, 2)).unbind(-1)  # (T, A h / width, width / 2)
            cos, sin = cos[:, None], sin[:, None]
            return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).view(x.shape)
        attributes = {"num_heads": flat.shape[2] // width, "rotary_embedding_dim": width, "interleaved": 1}
        position = torch.arange(num_tokens)[None]  # the angles are a table with a row for each token
        rotated = _symbolic("com.microsoft::RotaryEmbedding", [flat, position, cos, sin], attributes, flat.shape)
        return rotated.view(x.shape)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Divide the last dimension of x by its root mean square, in float32."""
        if not torch.compiler.is_exporting():
            return super().rms_norm(x, weight, epsilon)
        attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        return _symbolic("SimplifiedLayerNormalization", [x, weight], attributes, x.shape)

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

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, (T, I)."""
        if not torch.compiler.is_exporting():
            return super().silu_mul(gate, up)
        return _symbolic("com.microsoft::QuickGelu", [gate], {"alpha": 1.0}, gate.shape) * up


def _symbolic(
    name: str, inputs: list[torch.Tensor], attributes: dict[str, float | int], shape: torch.Size
) -> torch.Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=inputs[0].dtype, shape=shape, version=1)


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
