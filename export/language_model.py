"""The text tower of Qwen3-VL over packed items, restated so that it can be traced.

Same weights, same mathematics as `Qwen3VLTextModel`. Different: items are concatenated, never padded; visual tokens are
put in place by counting `<|image_pad|>`; the last layer and the final norm run at each item's last token only; tokens
whose keys and values are known beforehand are left out (see `prefixes`).

Letters: n items, T tokens, V visual tokens, C = 1 + DeepStack features, D hidden size, H query heads, K key heads, h
head size, R requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from .operators import Operators, Rotary
from .packing import Segments, count_per_segment, find_segments, nan_where, none_empty, starts_of
from .prefixes import KeysAndValues, Prefixes


class LanguageModel(nn.Module):
    """Tokens and visual tokens to the last hidden state of each item."""

    inv_freq: torch.Tensor
    axis: torch.Tensor
    layers: Any  # transformers' own modules, untyped
    embed_tokens: Any
    norm: Any

    def __init__(
        self, model: Qwen3VLTextModel, image_token_id: int, num_deepstack: int, operators: Operators | None = None
    ) -> None:
        super().__init__()
        self.operators = operators or Operators()
        config: Any = model.config
        self.embed_tokens, self.layers, self.norm = model.embed_tokens, model.layers, model.norm
        self.image_token_id = image_token_id
        self.num_features = 1 + num_deepstack
        self.hidden_size = config.hidden_size
        self.head_dim = config.head_dim
        inv_freq = model.rotary_emb.inv_freq.float()
        self.register_buffer("inv_freq", inv_freq, persistent=False)  # (h / 2,)
        # Interleaved M-RoPE: frequency i turns with time (0), height (1) or width (2).
        axis = torch.zeros(len(inv_freq), dtype=torch.int64)
        for index, section in enumerate(config.rope_parameters["mrope_section"]):
            if index:
                axis[index : section * 3 : 3] = index
        self.register_buffer("axis", axis, persistent=False)
        self.exact_products: nn.Module | None = None  # of layers in integers, whether this CPU computes them right
        self.prefixes: Prefixes | None = None
        self.known = nn.ParameterList()  # keys and values of the prefixes (S, K, h) at each layer

    def scalable(self) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
        """Return what has a weight for each channel that it puts out, and the layers that read it."""
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            yield layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]
            yield layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]
            yield mlp.up_proj, [mlp.down_proj]

    def know(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Compute the keys and values of token sequences that items begin with, once and for all."""
        if not any(beginnings):
            return
        prefixes = Prefixes(beginnings)
        lengths = prefixes.lengths[1:]
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
        with torch.no_grad():
            rotary = self._rotary(positions[:, None].expand(-1, 3))
            x = self.embed_tokens(torch.cat([torch.tensor(tokens) for tokens in prefixes.beginnings[1:]]))
            for layer in self.layers:
                normed = self.operators.rms_norm(layer.input_layernorm, x)
                states = self._keys_and_values(layer.self_attn, normed, rotary)
                self.known.extend(nn.Parameter(state, requires_grad=False) for state in states)
                x = x + self._attention(layer.self_attn, normed, rotary, states, lengths, lengths)
                x = x + self._mlp(layer.mlp, self.operators.rms_norm(layer.post_attention_layernorm, x))
        self.prefixes = prefixes

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        lengths: torch.Tensor,
        image_embeds: torch.Tensor,
        input_ids_offsets: torch.Tensor,
        position_ids_offsets: torch.Tensor,
        lengths_offsets: torch.Tensor,
        image_embeds_offsets: torch.Tensor,
    ) -> torch.Tensor:
        """Embed a packed batch.

        Parameters
        ----------
        input_ids : torch.Tensor, int64, shape = (T,)
        position_ids : torch.Tensor, int32, shape = (3 T,)
            t, h, w of each token.
        lengths : torch.Tensor, int32, shape = (n,)
        image_embeds : torch.Tensor, float32, shape = (C D V,)
            The k-th visual token belongs to the k-th `<|image_pad|>`.
        *_offsets : torch.Tensor, int32, shape = (R + 1,)
            Elements of each input before each request.

        Returns
        -------
        torch.Tensor, float32, shape = (n, D)
            After the final norm; NaN for a request whose tensors contradict each other, and for every request where
            one has a tensor without elements.
        """
        token_offsets = input_ids_offsets.to(torch.int64)
        item_lengths = lengths.to(torch.int64)
        segments = find_segments(
            item_lengths,
            torch.ones_like(item_lengths, dtype=torch.bool),
            lengths_offsets.to(torch.int64),
            token_offsets,
            input_ids.shape[0],
        )
        known = (input_ids >= 0) & (input_ids < self.embed_tokens.num_embeddings)
        positions, positions_fit = self._positions(position_ids, position_ids_offsets, token_offsets, segments)
        is_visual = input_ids == self.image_token_id
        visual, visuals_fit = self._visual_index(is_visual, image_embeds_offsets, token_offsets, segments)
        unknown = count_per_segment((~known).to(torch.int64), token_offsets)
        filled = none_empty(input_ids_offsets, position_ids_offsets, lengths_offsets, image_embeds_offsets)
        consistent = segments.consistent & positions_fit & visuals_fit & (unknown == 0) & filled
        if self.exact_products is not None:
            consistent = consistent & self.exact_products().flatten()

        input_ids = torch.where(known, input_ids, torch.zeros_like(input_ids))
        features = image_embeds.to(self.norm.weight.dtype).view(-1, self.num_features, self.hidden_size)
        lengths, sources = segments.lengths, None
        if self.prefixes:
            number = self.prefixes.find(input_ids, positions, segments)
            rows, lengths, sources = self.prefixes.leave_out(number, segments, input_ids.shape[0])
            input_ids, positions, is_visual, visual = (
                tensor[rows] for tensor in (input_ids, positions, is_visual, visual)
            )
        x = self.embed_tokens(input_ids).to(self.norm.weight.dtype)  # (T, D)
        x = torch.where(is_visual[:, None], features[:, 0][visual], x)
        deepstack = torch.cat([features[:, 1:], torch.zeros_like(features[:1, 1:])])  # with a row for other tokens
        visual = torch.where(is_visual, visual, features.shape[0])
        rotary = self._rotary(positions)
        last = (starts_of(lengths) + lengths - 1).clamp(min=0)  # (n,)
        norms = [*(layer.input_layernorm for layer in self.layers), self.norm]
        normed = self.operators.rms_norm(norms[0], x)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            states = self._keys_and_values(layer.self_attn, normed, rotary)
            if sources is not None:
                known_key, known_value = self.known[2 * index : 2 * index + 2]
                key, value = states
                states = torch.cat([known_key, key])[sources], torch.cat([known_value, value])[sources]
            attended = self._attention(
                layer.self_attn, normed, rotary, states, lengths, segments.lengths, last if is_last else None
            )
            x = x[last] if is_last else x
            normed, x = self.operators.add_rms_norm(layer.post_attention_layernorm, x, attended)
            added = self._mlp(layer.mlp, normed)
            if index + 1 < self.num_features and not is_last:  # DeepStack feature j goes in after decoder layer j
                x = x + added
                added = deepstack[:, index][visual]
            normed, x = self.operators.add_rms_norm(norms[index + 1], x, added)
        return nan_where(normed.float(), ~consistent[segments.request_of_item])

    def _rotary(self, positions: torch.Tensor) -> Rotary:
        return self.operators.rotary(positions[:, self.axis].float() * self.inv_freq, self.norm.weight.dtype)

    def _mlp(self, mlp: Any, x: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = mlp.down_proj(self.operators.silu_mul(mlp.gate_proj(x), mlp.up_proj(x)))
        return projected

    def _positions(
        self, position_ids: torch.Tensor, offsets: torch.Tensor, token_offsets: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions (T, 3) of each request's own tokens, and whether they are as many, (R,)."""
        own = offsets.to(torch.int64) // 3
        request = segments.request_of_row
        index = torch.arange(request.shape[0]) - token_offsets[request] + own[request]
        index = torch.minimum(index, own[request + 1] - 1)
        return position_ids.view(-1, 3)[index], own.diff() == token_offsets.diff()

    def _visual_index(
        self, is_visual: torch.Tensor, offsets: torch.Tensor, token_offsets: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which visual token each token takes (T,), and whether each request has as many as pads, (R,)."""
        own = offsets.to(torch.int64) // (self.num_features * self.hidden_size)
        counts = is_visual.to(torch.int64)
        before = counts.cumsum(0) - counts
        request = segments.request_of_row
        index = before - before[token_offsets[request]] + own[request]
        index = torch.minimum(index, own[request + 1] - 1)
        return index, count_per_segment(counts, token_offsets) == own.diff()

    def _keys_and_values(self, attention: Any, x: torch.Tensor, rotary: Rotary) -> KeysAndValues:
        """Return those of each token, (T, K, h) each."""
        key = attention.k_proj(x).unflatten(1, (-1, self.head_dim))
        value = attention.v_proj(x).unflatten(1, (-1, self.head_dim))
        return self.operators.rotate(self.operators.rms_norm(attention.k_norm, key), rotary), value

    def _attention(
        self,
        attention: Any,
        x: torch.Tensor,
        rotary: Rotary,
        states: KeysAndValues,
        lengths: torch.Tensor,
        key_lengths: torch.Tensor,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend causally; with `last`, only from each item's last token, which sees the whole item."""
        prune = last is not None and self.operators.attends_from_some
        if prune:
            x, rotary = x[last], (rotary[0][last], rotary[1][last])
            lengths = torch.ones_like(lengths)
        query = attention.q_proj(x).unflatten(1, (-1, self.head_dim))  # (T or n, H, h)
        query = self.operators.rotate(self.operators.rms_norm(attention.q_norm, query), rotary)
        attended = torch.ops.vlembed.packed_attention(
            query, *states, lengths, key_lengths, True, attention.scaling
        )  # (T or n, H, h)
        if last is not None and not prune:
            attended = attended[last]
        projected: torch.Tensor = attention.o_proj(attended.flatten(1))
        return projected
