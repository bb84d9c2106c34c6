"""One thing to embed, a text, an image or both: what is accepted is what the server accepts.

Knows how a side is written in a row, and the server's images and bounds; knows nothing of files of rows or of weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypedDict

import numpy as np

from images import PATCH_SIZE, TOKEN_PX, ItemError, open_image, write_patches
from preprocessing import Bounds, Preprocessor

SIDE_KEYS = ("text", "image", "instruction")
BOUNDS = Bounds()  # of the server
MAX_TOKENS_PER_BYTE = 3  # a token is a byte or more of the text in NFC, which is three times as long at most

# The client's rule for what is no text: who passes "cat.png" to be embedded means the cat.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
DATA_URI = re.compile(r"data:[^,\s]*;base64,\S*|data:\w+/[^,\s]+,\S*", re.IGNORECASE)
IMAGE_PATH = re.compile(r"\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|svg)", re.IGNORECASE)


class Side(TypedDict):
    """One thing to embed; "" is none."""

    text: str
    image: str  # absolute path
    instruction: str


@dataclass(frozen=True)
class ImageFile:
    """An image that was read, or code and message of what is wrong with it."""

    path: str = ""  # absolute
    num_tokens: int = 0  # visual ones
    code: str = ""
    message: str = ""


class SideReader:
    """Reads the sides of a file, and decodes each image once, however many rows show it.

    Parameters
    ----------
    folder
        What paths of images are relative to.
    preprocessor
        Of the checkpoint that the sides are for, with its image budget; left out, nothing is tokenised, and a side may
        have more tokens than a model takes.
    instruction
        Of sides that have none of their own.
    """

    def __init__(self, folder: Path, preprocessor: Preprocessor | None = None, instruction: str = "") -> None:
        self._folder = folder.resolve()
        self._preprocessor = preprocessor
        self._instruction = instruction
        self._bounds = preprocessor.bounds if preprocessor else BOUNDS
        # Twice, because pieces of the prompt may fall into more tokens beside a text.
        self._most_prompt_tokens = 2 * preprocessor.count_tokens("", "") if preprocessor else 0
        self._read_image = cache(self._open_image)

    def parse(self, name: str, value: object) -> Side:
        """Check a side as it stands in a row: a text, or an object of text, image and instruction.

        Raises
        ------
        ItemError
            Naming the side `name`: it is of a wrong type, has an unknown key, neither text nor image or too many
            tokens, its image cannot be read or decoded, or it is a string that names an image.
        """
        if isinstance(value, str):
            if what := _reference(value):
                raise ItemError(
                    "TEXT_IS_REFERENCE",
                    f"{name} is the text {value[:60]!r}, {what}. If you mean the image, save it and write its path, "
                    '{"image": "cat.png"}; if you mean the text itself, write {"text": ...}.',
                )
            value = {"text": value}
        if not isinstance(value, dict):
            raise wrong_type(name, value, 'a text, or an object such as {"text": "a cat", "image": "cat.png"}')
        check_keys(name, value, SIDE_KEYS)
        side: Side = {
            "text": parse_string(name, "text", value.get("text")),
            "image": parse_string(name, "image", value.get("image")),
            "instruction": parse_string(name, "instruction", value.get("instruction")) or self._instruction,
        }
        num_image_tokens = 0
        if side["image"]:
            image = self._read_image(side["image"])
            if image.code:
                raise ItemError(image.code, f"{name}: {side['image'][:200]!r}: {image.message}")
            side["image"], num_image_tokens = image.path, image.num_tokens
        elif not side["text"].strip():
            raise ItemError("ITEM_EMPTY", f"{name} is {repr(value)[:60]}, neither text nor image. Give it one.")
        if self._preprocessor:
            self._check_length(name, side, num_image_tokens, self._preprocessor)
        return side

    def _check_length(self, name: str, side: Side, num_image_tokens: int, preprocessor: Preprocessor) -> None:
        size_bytes = len(side["text"].encode()) + len(side["instruction"].encode())
        if self._most_prompt_tokens + MAX_TOKENS_PER_BYTE * size_bytes + num_image_tokens <= self._bounds.max_tokens:
            return  # most rows: to tokenise them would take longer than all the rest
        num_tokens = preprocessor.count_tokens(side["text"], side["instruction"], num_image_tokens)
        if num_tokens > self._bounds.max_tokens:
            num_others = preprocessor.count_tokens("", side["instruction"], num_image_tokens)
            raise ItemError(
                "TEXT_TOO_LONG",
                f"{name} has {num_tokens} tokens: {num_tokens - num_others} of its text, {num_image_tokens} of its "
                f"image, {num_others - num_image_tokens} of instruction and prompt; a model takes "
                f"{self._bounds.max_tokens}. Shorten the longest.",
            )

    def _open_image(self, image: str) -> ImageFile:
        """Read and decode an image as the server does."""
        bounds = self._bounds
        try:
            path = (self._folder / image).resolve()
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # the latter for a NUL in the path
            reason = getattr(error, "strerror", None) or error
            message = f"{reason}. Name an image file, absolutely or from {str(self._folder)!r}."
            return ImageFile(code="FILE_UNREADABLE", message=message)
        try:
            opened = open_image(
                data,
                min_pixels=bounds.min_pixels,
                max_pixels=bounds.max_pixels,
                max_image_bytes=bounds.max_image_bytes,
                max_image_pixels=bounds.max_image_pixels,
            )
            # Whatever fails does so in decoding; to resize to more than one token would take longer than that.
            write_patches(replace(opened, height=TOKEN_PX, width=TOKEN_PX), np.empty((1, PATCH_SIZE), np.uint8))
        except ItemError as error:
            return ImageFile(code=error.code, message=str(error))
        return ImageFile(str(path), opened.num_tokens)


def side_to_json(side: Side, folder: Path) -> str | dict[str, str]:
    """Return what reads as `side` in a data file of `folder`."""
    if not side["image"] and not side["instruction"] and not _reference(side["text"]):
        return side["text"]
    image = os.path.relpath(side["image"], folder.resolve()) if side["image"] else ""
    values = {"text": side["text"], "image": image, "instruction": side["instruction"]}
    return {key: value for key, value in values.items() if value}


def parse_string(name: str, key: str, value: object) -> str:
    """Check a string that the server has to take; None is ""."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong_type(f"{key} of {name}", value, "a string")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError as error:
        bad = value[error.start : error.end]
        raise ItemError(
            "TEXT_NOT_UTF8", f"{key} of {name} has {bad!r} at {error.start}, which UTF-8 cannot hold. Remove it."
        ) from error
    if size_bytes > BOUNDS.max_text_bytes:
        raise ItemError(
            "TEXT_TOO_LARGE",
            f"{key} of {name} has {size_bytes} bytes; the server takes {BOUNDS.max_text_bytes}. Shorten or split it.",
        )
    return value


def check_keys(name: str, value: dict[str, object], known: Sequence[str]) -> None:
    """Refuse keys that nobody would read."""
    for key in value:
        if key not in known:
            raise ItemError(
                "KEY_UNKNOWN", f"{name} has the key {key[:60]!r}; known are {', '.join(known)}. Rename or remove it."
            )


def wrong_type(name: str, value: object, expected: str) -> ItemError:
    """Say that a value is of a wrong type."""
    return ItemError(
        "WRONG_TYPE", f"{name} is {repr(value)[:60]} of type {type(value).__name__}; it needs to be {expected}."
    )


def _reference(text: str) -> str:
    """Say what a text refers to, or ""."""
    if len(text.split(maxsplit=1)) == 1:  # of words; a reference is one
        for pattern, what in ((URL, "a URL"), (DATA_URI, "a data: URI"), (IMAGE_PATH, "the path of an image file")):
            if pattern.fullmatch(text.strip()):
                return what
    return ""
