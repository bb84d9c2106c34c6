"""One thing to embed, a text, an image or both: what is accepted is what the server accepts.

Knows how a side is written in a row, and the server's images and bounds; knows nothing of files of rows or models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict

import numpy as np

from images import PATCH_SIZE, ItemError, open_image, write_patches
from preprocessing import Bounds

SIDE_KEYS = ("text", "image", "instruction")
BOUNDS = Bounds()  # of the server

# The client's rule for what is no text: who passes "cat.png" to be embedded means the cat.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
DATA_URI = re.compile(r"data:[^,\s]*;base64,\S*|data:\w+/[^,\s]+,\S*", re.IGNORECASE)
IMAGE_PATH = re.compile(r"\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|svg)", re.IGNORECASE)

FindImage: TypeAlias = Callable[[str], tuple[str, str, str]]  # `find_image` of a folder


class Side(TypedDict):
    """One thing to embed; "" is none."""

    text: str
    image: str  # absolute path
    instruction: str


def parse_side(name: str, value: object, find_image: FindImage) -> Side:
    """Check a side as it stands in a row: a text, or an object of text, image and instruction.

    Raises
    ------
    ItemError
        Naming the side `name`: it is of a wrong type, has an unknown key or neither text nor image, its image cannot be
        read or decoded, or it is a string that names an image.
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
        "instruction": parse_string(name, "instruction", value.get("instruction")),
    }
    if side["image"]:
        path, code, message = find_image(side["image"])
        if code:
            raise ItemError(code, f"{name}: {side['image'][:200]!r}: {message}")
        side["image"] = path
    elif not side["text"].strip():
        raise ItemError("ITEM_EMPTY", f"{name} is {repr(value)[:60]}, neither text nor image. Give it one.")
    return side


def side_to_json(side: Side, folder: Path) -> str | dict[str, str]:
    """Return what reads as `side` in a data file of `folder`."""
    if not side["image"] and not side["instruction"] and not _reference(side["text"]):
        return side["text"]
    image = os.path.relpath(side["image"], folder.resolve()) if side["image"] else ""
    values = {"text": side["text"], "image": image, "instruction": side["instruction"]}
    return {key: value for key, value in values.items() if value}


def find_image(folder: Path, image: str) -> tuple[str, str, str]:
    """Read and decode an image as the server does; return its absolute path, or code and message of what is wrong."""
    try:
        path = (folder / image).resolve()
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # the latter for a NUL in the path
        reason = getattr(error, "strerror", None) or error
        return "", "FILE_UNREADABLE", f"{reason}. Name an image file, absolutely or from {str(folder)!r}."
    try:
        opened = open_image(
            data,
            min_pixels=BOUNDS.min_pixels,
            max_pixels=BOUNDS.max_pixels,
            max_image_bytes=BOUNDS.max_image_bytes,
            max_image_pixels=BOUNDS.max_image_pixels,
        )
        write_patches(opened, np.empty((opened.num_tokens, PATCH_SIZE), np.uint8))
    except ItemError as error:
        return "", error.code, str(error)
    return str(path), "", ""


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
