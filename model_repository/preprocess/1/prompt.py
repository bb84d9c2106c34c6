"""The tokens of one item and their positions: the checkpoint's chat template around instruction, image and text.

Knows the tokenizer; knows nothing of packs, bounds of bytes, or pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

MAX_CACHED_INSTRUCTION = 1000  # characters; a stranger's long ones would fill the memory


class Prompt:
    """The checkpoint's chat template as token ids, from the pieces that export took out of it.

    User text is always encoded as plain text: `<|im_end|>` in it is nine ordinary tokens or so, never the special one.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Mapping[str, str], image_token: str) -> None:
        self._tokenizer = tokenizer
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        # What the tokenizer's own post-processor adds around a sequence: one <|endoftext|> at the end of the real one.
        bare, full = tokenizer.encode("x", add_special_tokens=False).ids, tokenizer.encode("x").ids
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        self._begin, end = full[:start], full[start + len(bare) :]
        tokenizer.encode_special_tokens = True
        self._before_instruction = pieces["before_instruction"]
        # The last plain piece before the user's content ("user\n") is tokenised together with the text that follows it.
        self._after_instruction, self._user = self._split_last(pieces["after_instruction"])
        self._user_ids = self._plain(self._user)
        before_pads, after_pads = pieces["image"].split(image_token)
        self._before_pads, self._after_pads = self.encode(before_pads), self.encode(after_pads)
        self._pad = self._id(image_token)
        self._end = self.encode(pieces["after_content"]) + end
        self._cached_lead = lru_cache(maxsize=256)(self._encode_lead)
        self.sentinel = [self._pad]  # the item of one visual token that an imageless pack carries

    def _split_last(self, piece: str) -> tuple[str, str]:
        parts = self._special.split(piece)
        return "".join(parts[:-1]), parts[-1]

    def encode(self, template: str) -> list[int]:
        """Encode a piece of the template: special tokens as such, the rest as text."""
        ids: list[int] = []
        for part in self._special.split(template):
            ids += [self._id(part)] if self._special.fullmatch(part) else self._plain(part)
        return ids

    def _id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"tokenizer.json has no token {token!r}; export the checkpoint again.")
        return token_id

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _lead(self, instruction: str) -> list[int]:
        is_short = len(instruction) <= MAX_CACHED_INSTRUCTION
        return self._cached_lead(instruction) if is_short else self._encode_lead(instruction)

    def _encode_lead(self, instruction: str) -> list[int]:
        before, open_piece = self._split_last(self._before_instruction)
        lead = self._begin + self.encode(before) + self._plain(open_piece + instruction)
        return lead + self.encode(self._after_instruction)

    def item(self, instruction: str, text: str, num_image_tokens: int, limit: int) -> tuple[list[int], int, int]:
        """Lay out one item.

        Returns its token ids, with the text cut so that they stay within `limit` where that is possible, the index of
        the first visual token, and how many tokens the whole item has.
        """
        ids = list(self._lead(instruction))
        if num_image_tokens:
            ids += self._user_ids + self._before_pads
            first_pad = len(ids)
            ids += [self._pad] * num_image_tokens + self._after_pads
            content, least = self._plain(text), 0
        else:
            first_pad = len(ids)
            content, least = self._plain(self._user + text), len(self._user_ids)
        total = len(ids) + len(content) + len(self._end)
        keep = max(least, len(content) - max(0, total - limit))
        return ids + content[:keep] + self._end, first_pad, total


def positions(num_tokens: int, first_pad: int, grid: tuple[int, int] | None) -> npt.NDArray[np.int32]:
    """Return M-RoPE positions, int32 (T, 3): text counts on, an image opens a plane of rows and columns.

    Source: `get_rope_index` of Qwen3-VL in transformers.
    """
    triples = np.repeat(np.arange(num_tokens, dtype=np.int32)[:, None], 3, axis=1)
    if grid is not None:
        rows, columns = grid
        end = first_pad + rows * columns
        plane = triples[first_pad:end]
        plane[:, 0] = first_pad
        plane[:, 1] = first_pad + np.repeat(np.arange(rows), columns)
        plane[:, 2] = first_pad + np.tile(np.arange(columns), rows)
        triples[end:] += max(rows, columns) - rows * columns
    return triples
