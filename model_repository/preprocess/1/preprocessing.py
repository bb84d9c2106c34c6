"""A pack of texts and encoded images to packed tokens, positions and patches: everything before the model.

Knows packs, and what to say of bad input; knows nothing of Triton, and neither torch nor transformers is imported.
`prompt` knows the tokenizer and positions, `images` pixels.

Letters: n items of the pack, T tokens, V visual tokens, D hidden size.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bounds import Bounds as Bounds
from errors import ItemError, shown
from errors import PackError as PackError
from images import MERGE, PATCH_SIZE, OpenImage, open_image, write_patches
from prompt import Prompt, positions


@dataclass(frozen=True)
class Pack:
    """The tensors of one request, named as on the wire between the steps. Never empty: see `Preprocessor`."""

    input_ids: npt.NDArray[np.int64]  # (1, T)
    position_ids: npt.NDArray[np.int32]  # (1, T, 3) t, h, w of each token
    lengths: npt.NDArray[np.int32]  # (1, n), or (1, n+1) with the sentinel item
    patches: npt.NDArray[np.uint8]  # (1, V, 6144)
    grid_thw: npt.NDArray[np.int32]  # (1, images, 3) in patches
    num_text_tokens: npt.NDArray[np.int32]  # (n,)
    num_image_tokens: npt.NDArray[np.int32]  # (n,)


class Abandoned(Exception):  # noqa: N818
    """Nobody waits for the pack any more."""


class Layout(NamedTuple):
    """The tokens of one item."""

    input_ids: list[int]
    position_ids: npt.NDArray[np.int32]  # (T, 3)
    num_image_tokens: int


class Preprocessor:
    """Turn requests into packs, or refuse them with a `PackError`.

    No tensor of a pack is ever empty, because Triton's stock backends corrupt a batch that holds an empty ragged
    tensor: a pack without images carries one sentinel item, a single visual token, whose pooled row `pooling` drops.

    Parameters
    ----------
    folder
        Holds `tokenizer.json` of the checkpoint and `preprocessing.json`, which export derives from its other files.
    bounds
        What a request may cost.
    observe_decoding
        Called for every image that was decoded, resized and cut, with its format and the processor seconds it took.
    """

    def __init__(
        self, folder: Path, bounds: Bounds, observe_decoding: Callable[[str, float], None] = lambda kind, seconds: None
    ) -> None:
        settings: dict[str, Any] = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.bounds = bounds
        self._observe_decoding = observe_decoding
        self.hidden_size: int = settings["hidden_size"]
        self.min_dimensions: int = settings["min_dimensions"]
        self.image_embeds_size: int = settings["image_embeds_size"]  # 4D for a DeepStack of three
        self.default_instruction: str = settings["default_instruction"]
        self.exif_orientation: bool = settings["exif_orientation"]  # whether pictures are turned as EXIF says
        self._prompt = Prompt(tokenizer, settings["prompt"], settings["image_token"])

    def __call__(
        self,
        text: Sequence[bytes] | None = None,
        image: Sequence[bytes] | None = None,
        instruction: Sequence[bytes] | None = None,
        *,
        dimensions: int | None = None,
        max_pixels: int | None = None,
        truncate: bool = False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Pack:
        """Preprocess one request.

        Parameters
        ----------
        text, image
            n entries each: UTF-8 text and encoded images; an empty image, or an empty text beside one, is none.
        instruction
            1 or n entries; blank means the default instruction.
        dimensions
            Only checked here, so that a bad value costs nothing.
        max_pixels
            Image budget of this request, within the bounds.
        truncate
            Cut over-long text to `max_text_bytes` and `max_tokens` instead of refusing it; `num_text_tokens` tells
            what was left.
        is_wanted
            Asked before each step of an item whether anybody still waits for the pack.

        Raises
        ------
        Abandoned
            Nobody waits for it any more.
        PackError
            Listing every bad item, with its index, the value, the rule and the cure.
        """
        self._check_options(dimensions, max_pixels)
        num_items = self._count_items(text, image, instruction)
        errors: dict[int, ItemError] = {}

        def each(step: Callable[[int], Any]) -> list[Any]:
            """Run a step for every item that is still good, and keep what the bad ones say."""
            results = []
            for i in range(num_items):
                if not is_wanted():
                    raise Abandoned
                try:
                    results.append(step(i) if i not in errors else None)
                except ItemError as error:
                    errors[i] = error
                    results.append(None)
            return results

        instructions = each(
            lambda i: self._instruction(instruction[i % len(instruction)]) if instruction else self.default_instruction
        )
        texts = each(lambda i: self._text(text[i], truncate=truncate) if text else "")
        pixels = self.bounds.max_pixels if max_pixels is None else max_pixels
        images: list[OpenImage | None] = each(lambda i: self._open(image[i] if image else b"", pixels))
        if text is None:
            each(lambda i: _require_image(images[i]))
        elif image is not None:
            each(lambda i: _require_content(texts[i], images[i]))

        text_bytes = sum(len(content.encode()) for content in [*instructions, *texts] if content)
        work_pixels = sum(opened.picture.work_pixels for opened in images if opened)
        self._check_pack(  # before a text is tokenised or a pixel decoded
            ("bytes of text to tokenise", text_bytes, self.bounds.max_pack_text_bytes),
            ("pixels to decode", work_pixels, self.bounds.max_pack_pixels),
        )
        layouts: list[Layout] = each(lambda i: self._layout(instructions[i], texts[i], images[i], truncate))
        self._check_pack(  # before a pixel is decoded
            ("tokens", sum(len(layout.input_ids) for layout in layouts if layout), self.bounds.max_pack_tokens),
            (
                "visual tokens",
                sum(layout.num_image_tokens for layout in layouts if layout),
                self.bounds.max_pack_image_tokens,
            ),
        )
        patches, grids = self._patches(images, each)
        if errors:
            raise PackError.of_items(errors, num_items)

        image_tokens = np.array([layout.num_image_tokens for layout in layouts], np.int32)
        lengths = [len(layout.input_ids) for layout in layouts]
        text_tokens = np.array(lengths, np.int32) - image_tokens
        if not image_tokens.any():  # the sentinel: one visual token, one grid of 2 x 2 patches
            layouts.append(Layout(self._prompt.sentinel, np.zeros((1, 3), np.int32), 1))
            lengths.append(1)
            patches, grids = np.zeros((1, PATCH_SIZE), np.uint8), [(1, MERGE, MERGE)]
        return Pack(
            input_ids=np.concatenate([np.array(layout.input_ids, np.int64) for layout in layouts])[None],
            position_ids=np.concatenate([layout.position_ids for layout in layouts])[None],
            lengths=np.array([lengths], np.int32),
            patches=patches[None],
            grid_thw=np.array([grids], np.int32),
            num_text_tokens=text_tokens,
            num_image_tokens=image_tokens,
        )

    def count_tokens(self, text: str, instruction: str, num_image_tokens: int = 0) -> int:
        """Return how many tokens an item has, prompt and image included, before any truncation.

        Raises
        ------
        ItemError
            `instruction` is over `max_text_bytes`.
        """
        lead = self._instruction(instruction.encode())
        return self._prompt.item(lead, text, num_image_tokens, self.bounds.max_tokens)[2]

    def _check_options(self, dimensions: int | None, max_pixels: int | None) -> None:
        if dimensions is not None and not self.min_dimensions <= dimensions <= self.hidden_size:
            raise PackError(
                "DIMENSIONS_OUT_OF_RANGE",
                f"dimensions is {dimensions}; this model gives {self.min_dimensions} to {self.hidden_size}. "
                "Leave it out for all.",
            )
        low, high = self.bounds.min_pixels, self.bounds.max_pixels
        if max_pixels is not None and not low <= max_pixels <= high:
            raise PackError(
                "MAX_PIXELS_OUT_OF_RANGE",
                f"max_pixels is {max_pixels}; this server allows {low} to {high}. Leave it out for {high}.",
            )

    def _count_items(
        self, text: Sequence[bytes] | None, image: Sequence[bytes] | None, instruction: Sequence[bytes] | None
    ) -> int:
        if not text and not image:
            raise PackError(
                "NO_INPUT",
                "the request has neither text nor image; at least one item is needed. Send text, image or both.",
            )
        if text is not None and image is not None and len(text) != len(image):
            raise PackError(
                "SHAPE_MISMATCH",
                f"text has {len(text)} entries and image has {len(image)}; together they need the same n. "
                'Fill with "" where an item has none.',
            )
        num_items = len(text or image or ())
        if num_items > self.bounds.max_items:
            raise PackError(
                "PACK_TOO_LARGE",
                f"the pack has {num_items} items; the server takes {self.bounds.max_items}. Send it in parts.",
            )
        if instruction is not None and len(instruction) not in (1, num_items):
            raise PackError(
                "SHAPE_MISMATCH",
                f"instruction has {len(instruction)} entries for {num_items} items; it needs 1, or one for each item.",
            )
        return num_items

    @staticmethod
    def _check_pack(*costs: tuple[str, int, int]) -> None:
        """Refuse a pack over a bound: each cost is what is counted, how much of it there is, and the bound."""
        for what, size, bound in costs:
            if size > bound:
                raise PackError(
                    "PACK_TOO_LARGE", f"the pack has {size} {what}; the server takes {bound}. Send it in parts."
                )

    def _text(self, data: bytes, name: str = "text", *, truncate: bool = False) -> str:
        bound = self.bounds.max_text_bytes
        if len(data) > bound and truncate:  # before anything huge is tokenised
            data = _cut(data, bound)
        elif len(data) > bound:
            cure = "Shorten or split it, or ask for truncation (truncate)" if name == "text" else "Shorten it"
            raise ItemError("TEXT_TOO_LARGE", f"{name} has {len(data)} bytes; the server takes {bound}. {cure}.")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = data[error.start : error.start + 4]
            raise ItemError(
                "TEXT_NOT_UTF8", f"{name} is not UTF-8 (bytes {bad!r} at {error.start}). Encode it as UTF-8."
            ) from error

    def _instruction(self, data: bytes) -> str:
        """Apply the official rule: strip, and end with punctuation. Blank means the default."""
        instruction = self._text(data, "instruction").strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction += "."
        return instruction or self.default_instruction

    def _open(self, data: bytes, max_pixels: int) -> OpenImage | None:
        if not data:
            return None
        bounds = self.bounds
        return open_image(
            data,
            min_pixels=bounds.min_pixels,
            max_pixels=max_pixels,
            max_image_bytes=bounds.max_image_bytes,
            max_image_pixels=bounds.max_image_pixels,
            max_work_pixels=bounds.max_pack_pixels,
            exif_orientation=self.exif_orientation,
        )

    def _layout(self, instruction: str, text: str, opened: OpenImage | None, truncate: bool) -> Layout:
        num_image_tokens = opened.num_tokens if opened else 0
        limit = self.bounds.max_tokens
        ids, first_pad, total = self._prompt.item(instruction, text, num_image_tokens, limit)
        if len(ids) > limit or (total > limit and not truncate):
            raise self._too_long(instruction, num_image_tokens, total)
        return Layout(ids, positions(len(ids), first_pad, opened.grid if opened else None), num_image_tokens)

    def _too_long(self, instruction: str, num_image_tokens: int, total: int) -> ItemError:
        limit = self.bounds.max_tokens
        message = f"the item has {total} tokens ({num_image_tokens} of them visual); the server takes {limit}."
        _, _, without_text = self._prompt.item(instruction, "", num_image_tokens, limit)
        _, _, least = self._prompt.item(self.default_instruction, "", num_image_tokens, limit)
        if least > limit:
            return ItemError("TEXT_TOO_LONG", f"{message} Visual tokens are never cut: lower max_pixels.")
        if without_text > limit:
            own = without_text - least
            return ItemError(
                "INSTRUCTION_TOO_LONG",
                f"{message} Its instruction takes {own} more than the default one, and is never cut: shorten it.",
            )
        return ItemError("TEXT_TOO_LONG", f"{message} Shorten the text or ask for truncation (truncate).")

    def _patches(
        self, images: Sequence[OpenImage | None], each: Callable[[Callable[[int], Any]], list[Any]]
    ) -> tuple[npt.NDArray[np.uint8], list[tuple[int, int, int]]]:
        """Decode every image into one array (V, 6144), and list their grids in patches."""
        counts = [opened.num_tokens if opened else 0 for opened in images]
        ends = np.cumsum(counts)
        patches = np.empty((int(ends[-1]), PATCH_SIZE), np.uint8)

        def write(i: int) -> None:
            if opened := images[i]:
                started = time.thread_time()
                write_patches(opened, patches[ends[i] - counts[i] : ends[i]])
                self._observe_decoding(opened.picture.kind, time.thread_time() - started)

        each(write)
        return patches, [(1, rows * MERGE, columns * MERGE) for rows, columns in (o.grid for o in images if o)]


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse request parameters, which nobody would read; Triton keeps its own to itself, or names them `triton_*`.

    Raises
    ------
    PackError
        There is one. A header that Triton is told to forward is one, too.
    """
    if unknown := sorted(name for name in parameters if not name.startswith("triton_")):
        raise PackError(
            "PARAMETER_UNKNOWN",
            f"the request has the parameter {shown(unknown[0])}, one of {len(unknown)}, which nobody reads. "
            "Options are input tensors: instruction, dimensions, max_pixels, truncate.",
        )


def _require_image(opened: OpenImage | None) -> None:
    if opened is None:
        raise ItemError("ITEM_EMPTY", "image is empty and there is no text. Send an encoded image, or a text.")


def _require_content(text: str, opened: OpenImage | None) -> None:
    if opened is None and not text:
        raise ItemError("ITEM_EMPTY", "image and text are both empty. Send an encoded image, a text, or both.")


def _cut(text: bytes, size_bytes: int) -> bytes:
    """Return the start of a UTF-8 text, of at most `size_bytes`, without a part of a character at its end."""
    end = size_bytes
    while end > size_bytes - 4 and text[end] & 0xC0 == 0x80:  # a character goes on here
        end -= 1
    return text[:end]
