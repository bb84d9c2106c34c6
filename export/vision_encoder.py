"""The vision tower of Qwen3-VL over packed images, restated so that it can be traced.

Same weights, same mathematics as `Qwen3VLVisionModel`. Different: all positions are computed from `grid_thw` inside the
graph, the Conv3d patch embedding is a matrix product, attention is `packed_attention`, and uint8 pixels are normalised
here.

Letters: V visual tokens of all images, P patches (4V), I images, C = 1 + DeepStack features, D hidden size of the text
tower, E hidden size of this one, h head size, R requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from .operators import Operators, Rotary
from .packing import find_segments, nan_where, none_empty, segment_index

MERGE = 2
PATCHES_PER_TOKEN = MERGE * MERGE
PATCH_VALUES = 3 * 2 * 16 * 16  # channels, frames, rows, columns


class PatchEmbedding(nn.Module):
    """The Conv3d of uint8 pixels, as a matrix product; pixels come to it as -1 ... 1."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)  # (E, 1536), (E,)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 patches (P, 1536) as (P, E)."""
        values = (pixels.float() / 127.5 - 1).to(self.weight.dtype)
        return values @ self.weight.T + self.bias


class VisionEncoder(nn.Module):
    """uint8 patches to visual tokens and their DeepStack features."""

    inv_freq: torch.Tensor
    positions: torch.Tensor
    blocks: Any  # transformers' own modules, untyped
    merger: Any
    deepstack_mergers: Any

    def __init__(self, model: Qwen3VLVisionModel, operators: Operators | None = None) -> None:
        super().__init__()
        self.operators = operators or Operators()
        config: Any = model.config
        self.blocks, self.merger, self.deepstack_mergers = model.blocks, model.merger, model.deepstack_merger_list
        self.projections: Any = nn.ModuleList(_thirds(block.attn.qkv) for block in self.blocks)
        self.exact_products: nn.Module | None = None  # of layers in integers, whether this CPU computes them right
        self.deepstack_indexes = list(config.deepstack_visual_indexes)
        self.num_heads = config.num_heads
        self.side = model.num_grid_per_side  # of the square table of learned positions
        self.register_buffer("positions", model.pos_embed.weight.detach().float(), persistent=False)  # (side * side, E)
        projection: Any = model.patch_embed.proj
        self.patch_embedding = PatchEmbedding(projection.weight.detach().flatten(1), projection.bias)
        self.register_buffer("inv_freq", model.rotary_pos_emb.inv_freq.float(), persistent=False)  # (h / 4,)

    def scalable(self) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
        """Return what has a weight for each channel that it puts out, and the layers that read it."""
        for block, projections in zip(self.blocks, self.projections, strict=True):
            yield block.norm1, [*projections]
            yield block.norm2, [block.mlp.linear_fc1]

    def forward(
        self,
        patches: torch.Tensor,
        grid_thw: torch.Tensor,
        patches_offsets: torch.Tensor,
        grid_thw_offsets: torch.Tensor,
    ) -> torch.Tensor:
        """Encode a packed batch.

        Parameters
        ----------
        patches : torch.Tensor, uint8, shape = (6144 V,)
        grid_thw : torch.Tensor, int32, shape = (3 I,)
            t = 1, rows and columns in patches, both even.
        patches_offsets, grid_thw_offsets : torch.Tensor, int32, shape = (R + 1,)
            Elements of each input before each request.

        Returns
        -------
        torch.Tensor, float32, shape = (V, C D)
            Main features, then the DeepStack features; NaN for a request whose grids do not fit its patches,
            and for every request where one has no patches or no grids.
        """
        tokens = patches.view(-1, PATCHES_PER_TOKEN * PATCH_VALUES)  # (V, 6144)
        num_tokens = tokens.shape[0]
        pixels = tokens.view(num_tokens * PATCHES_PER_TOKEN, -1)  # (P, 1536)
        time, height, width = grid_thw.to(torch.int64).view(-1, 3).unbind(1)
        valid = (time == 1) & (height > 0) & (width > 0) & (height % MERGE == 0) & (width % MERGE == 0)
        segments = find_segments(
            height * width // PATCHES_PER_TOKEN,
            valid,
            grid_thw_offsets.to(torch.int64) // 3,
            patches_offsets.to(torch.int64) // tokens.shape[1],
            num_tokens,
        )
        # An inconsistent request is one strip of its own patches: any grid that fits will do.
        trusted = segments.consistent[segments.request_of_item]
        height = torch.where(trusted, height, torch.full_like(height, MERGE))
        width = torch.where(trusted, width, MERGE * segments.lengths.clamp(min=1))

        image = segment_index(segments.starts, num_tokens)  # (V,)
        row, column = self._patch_grid(segments.starts[image], width[image])  # (P,)
        image_of_patch = image.repeat_interleave(PATCHES_PER_TOKEN)
        x = self.patch_embedding(pixels)  # (P, E)
        x = x + self._learned_positions(row, column, height[image_of_patch], width[image_of_patch]).to(x.dtype)
        angles = torch.cat([row[:, None] * self.inv_freq, column[:, None] * self.inv_freq], dim=1)  # (P, h / 2)
        rotary = self.operators.rotary(angles, x.dtype)

        lengths = segments.lengths * PATCHES_PER_TOKEN
        features = []
        normed = self.blocks[0].norm1(x)
        for index, block in enumerate(self.blocks):
            attended = self._attention(index, normed, rotary, lengths)
            normed, x = self.operators.add_layer_norm(block.norm2, x, attended)
            added = block.mlp(normed)
            if index + 1 < len(self.blocks):
                normed, x = self.operators.add_layer_norm(self.blocks[index + 1].norm1, x, added)
            else:
                x = x + added
            if index in self.deepstack_indexes:
                features.append(self.deepstack_mergers[self.deepstack_indexes.index(index)](x))
        image_embeds = torch.cat([self.merger(x), *features], dim=1)  # (V, C D)
        consistent = segments.consistent & none_empty(patches_offsets, grid_thw_offsets)
        if self.exact_products is not None:
            consistent = consistent & self.exact_products().flatten()
        return nan_where(image_embeds.float(), ~consistent[segments.request_of_row])

    def _patch_grid(self, start: torch.Tensor, width: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row and column of each patch in its image, (P,) each; patches come in 2x2 blocks."""
        token = torch.arange(start.shape[0]) - start
        blocks_across = width // MERGE
        inner = torch.arange(PATCHES_PER_TOKEN)
        row = (token // blocks_across * MERGE)[:, None] + inner // MERGE
        column = (token % blocks_across * MERGE)[:, None] + inner % MERGE
        return row.flatten(), column.flatten()

    def _learned_positions(
        self, row: torch.Tensor, column: torch.Tensor, height: torch.Tensor, width: torch.Tensor
    ) -> torch.Tensor:
        """Interpolate the table bilinearly with aligned corners, (P, E)."""
        top, bottom, below = self._neighbours(row, height)
        left, right, beyond = self._neighbours(column, width)
        upper = self.positions[top * self.side + left] * (1 - beyond) + self.positions[top * self.side + right] * beyond
        lower = (
            self.positions[bottom * self.side + left] * (1 - beyond)
            + self.positions[bottom * self.side + right] * beyond
        )
        return upper * (1 - below) + lower * below

    def _neighbours(self, index: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the table entries on both sides of each index, and the weight (P, 1) of the second."""
        at = index.float() * (self.side - 1) / (size - 1).float()
        first = at.floor().to(torch.int64).clamp(0, self.side - 1)
        return first, (first + 1).clamp(max=self.side - 1), (at - first)[:, None].to(self.positions.dtype)

    def _attention(self, index: int, x: torch.Tensor, rotary: Rotary, lengths: torch.Tensor) -> torch.Tensor:
        projections: Any = self.projections[index]
        query, key, value = (project(x).view(x.shape[0], self.num_heads, -1) for project in projections)
        attended = torch.ops.vlembed.packed_attention(
            self.operators.rotate(query, rotary),
            self.operators.rotate(key, rotary),
            value,
            lengths,
            lengths,
            False,
            query.shape[-1] ** -0.5,
        )
        projected: torch.Tensor = self.blocks[index].attn.proj(attended.flatten(1))
        return projected


def _thirds(projection: Any) -> nn.ModuleList:
    """Return the projections to queries, keys and values, so that their outputs need not be split."""
    thirds = nn.ModuleList()
    for weight, bias in zip(projection.weight.chunk(3), projection.bias.chunk(3), strict=True):
        third = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        third.weight, third.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        thirds.append(third)
    return thirds
