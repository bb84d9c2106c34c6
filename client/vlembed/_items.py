"""What a caller may pass as an item, checked and turned into the bytes of the wire.

Knows every spelling of an item and what is commonly meant by a wrong one; knows nothing of packs or servers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt

from ._checks import type_name
from ._containers import as_values, is_dataset, is_missing
from ._exceptions import InvalidInputError, ItemError
from ._images import NoRangeError, PillowImage, encode_array, encode_pillow, read_size

ImageLike: TypeAlias = Path | bytes | npt.NDArray[Any] | PillowImage
ItemLike: TypeAlias = "str | ImageLike | Item"

T = TypeVar("T")
R = TypeVar("R")

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
DATA_URI = re.compile(r"data:[^,\s]*;base64,\S*|data:\w+/[^,\s]+,\S*", re.IGNORECASE)
IMAGE_PATH = re.compile(r"\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|svg)", re.IGNORECASE)
MAX_FILE_BYTES = 256 << 20  # larger ones are not even read; what a server takes is far less
REFERENCES = {  # what a text may be, and what is probably meant
    "a URL": (URL, "its content: download it and pass a text, or a Path or the bytes of an image"),
    "a data: URI": (DATA_URI, "the image in it: pass it as bytes, text.encode()"),
    "the path of an image file": (IMAGE_PATH, "the image: pass Path({!r})"),
}
INSIST = "To embed the string itself, pass allow_reference_text=True."
IMAGES = "a Path, the bytes of an encoded image, a PIL image, or a numpy array uint8 (H, W, 3 or 4)"


@dataclass(frozen=True, eq=False)
class Item:
    """A text, an image or both (the image comes before the text), under an instruction of its own if one is given.

    Parameters
    ----------
    text
        Any string. An empty one beside an image is no text; alone it is embedded as it is.
    image
        The Path or the bytes of a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF file, bytes of a data: URI, a PIL image, or a
        numpy array uint8 (H, W, 3) RGB or (H, W, 4) RGBA. It is embedded as a viewer shows it.
    instruction
        The task; the call's instruction by default.
    """

    text: str | None = None
    image: ImageLike | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class PreparedItem:
    """An item as it travels; an empty value is none."""

    text: bytes
    image: bytes
    instruction: bytes

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height, px, as far as the header is easily read."""
        return read_size(self.image)


class BadItemError(Exception):
    """What is wrong with an item, wherever it stands."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def at(self, index: int) -> ItemError:
        """Say it of the item at an index."""
        return ItemError(index, self.code, str(self))


def as_iterable(items: ItemLike | Iterable[ItemLike]) -> Iterable[ItemLike]:
    """Return a single item as a list of one, and several as they are, or a column of a table as a list.

    Raises
    ------
    InvalidInputError
        It is a table, a mapping or a set, or no iterable.
    """
    if isinstance(items, bytearray | memoryview):
        items = bytes(items)
    if isinstance(items, str | bytes | Path | Item) or _is_pillow(items) or _is_pixels(items):
        return [items]
    if isinstance(items, set | frozenset):
        raise InvalidInputError(f"items is of type {type_name(items)}, which has no order. Pass a list.")
    cure = f'Pass one item, a list, or a column of a table, as table["text"]. An item is a str, {IMAGES}, or an Item.'
    if is_dataset(items):
        raise InvalidInputError(f"items is of type {type_name(items)}, whose rows are no items. {cure}")
    return as_values("items", items, cure)


def as_sequence(items: ItemLike | Iterable[ItemLike]) -> Sequence[ItemLike]:
    """Return a single item as a list of one, and several as a list."""
    return list(as_iterable(items))


def prepare(items: Sequence[ItemLike], *, instruction: str | None, allow_reference_text: bool) -> list[PreparedItem]:
    """Read and encode every item.

    Raises
    ------
    InvalidInputError
        Listing every item of a wrong type, without content, unreadable, or that looks like a reference.
    """
    return _for_each(items, lambda item: prepare_item(item, instruction, allow_reference_text))


def fit_all(items: Sequence[PreparedItem], bounds: Mapping[str, int], *, truncate: bool) -> list[PreparedItem]:
    """Cut texts to what the server takes, if that is asked for, and refuse what it would refuse for its bytes.

    Raises
    ------
    InvalidInputError
        Listing every item that is too large.
    """
    return _for_each(items, lambda item: fit(item, bounds, truncate=truncate))


def _for_each(items: Sequence[T], step: Callable[[T], R]) -> list[R]:
    """Run a step for every item, and collect what the bad ones say."""
    results, errors = [], []
    for index, item in enumerate(items):
        try:
            results.append(step(item))
        except BadItemError as error:
            errors.append(error.at(index))
    if errors:
        raise InvalidInputError.of_items(errors, len(items))
    return results


def prepare_item(item: ItemLike, instruction: str | None, allow_reference_text: bool) -> PreparedItem:
    """Read and encode one item, or raise `BadItemError`."""
    if is_missing(item):
        raise BadItemError("ITEM_EMPTY", f"the item is {item!r}, a missing value. Leave it out, or give it a text.")
    if not isinstance(item, Item):
        item = Item(text=item) if isinstance(item, str) else Item(image=item)
    if item.text is None and item.image is None:
        raise BadItemError("ITEM_EMPTY", "the item has neither text nor image. Give it one.")
    if isinstance(item.text, str) and not allow_reference_text:
        _refuse_reference(item.text)
    own = instruction if item.instruction is None else item.instruction
    return PreparedItem(
        text=_encode_text("text", item.text),
        image=b"" if item.image is None else _encode_image(item.image),
        instruction=_encode_text("instruction", own),
    )


def reference_in(text: str) -> str | None:
    """Name what a text refers to instead of saying it, None if it is a text like others."""
    return next((what for what, (pattern, _) in REFERENCES.items() if pattern.fullmatch(text.strip())), None)


def _refuse_reference(text: str) -> None:
    if what := reference_in(text):
        start = text.strip()[:60]
        meant = REFERENCES[what][1].format(start)
        raise BadItemError("TEXT_IS_REFERENCE", f"the text {start!r} is {what}. You probably mean {meant}. {INSIST}")


def fit(item: PreparedItem, bounds: Mapping[str, int], *, truncate: bool) -> PreparedItem:
    """Cut an item's text to what the server takes, or raise `BadItemError` if it would refuse the item's bytes."""
    max_text_bytes, max_image_bytes = bounds["max_text_bytes"], bounds["max_image_bytes"]
    if truncate and len(item.text) > max_text_bytes:
        whole_characters = item.text[:max_text_bytes].decode(errors="ignore")
        item = replace(item, text=whole_characters.encode())
    for name, size_bytes in (("text", len(item.text)), ("instruction", len(item.instruction))):
        if size_bytes > max_text_bytes:
            cure = "Shorten or split it, or ask for truncation (truncate)" if name == "text" else "Shorten it"
            raise BadItemError(
                "TEXT_TOO_LARGE", f"{name} has {size_bytes} bytes; the server takes {max_text_bytes}. {cure}."
            )
    if len(item.image) > max_image_bytes * 4 // 3 + 100:  # a data: URI of the largest image; the server checks exactly
        raise BadItemError(
            "IMAGE_TOO_LARGE", f"image has {len(item.image)} bytes; the server takes {max_image_bytes}. Scale it down."
        )
    return item


def _encode_text(name: str, text: object) -> bytes:
    if text is None:
        return b""
    if not isinstance(text, str):
        missing = ", a missing value" if is_missing(text) else ""
        raise BadItemError("WRONG_TYPE", f"{name} is of type {type_name(text)}{missing}; it needs to be a str.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start : error.end]
        raise BadItemError(
            "TEXT_NOT_UTF8",
            f"{name} has {bad!r} at {error.start}, which UTF-8 cannot hold. Remove lone surrogates, or save its source "
            "as UTF-8.",
        ) from error


def _encode_image(image: object) -> bytes:
    data = _image_bytes(image)
    if not data:
        raise BadItemError("IMAGE_EMPTY", "image has no bytes. Pass an encoded image, or leave it out.")
    return data


def _image_bytes(image: object) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Path):
        try:
            if (size_bytes := image.stat().st_size) > MAX_FILE_BYTES:
                raise BadItemError(
                    "IMAGE_TOO_LARGE", f"image {_shown(image)} has {size_bytes} bytes. Scale it down, or pass another."
                )
            return image.read_bytes()
        except (OSError, ValueError) as error:  # the latter for a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise BadItemError(
                "FILE_UNREADABLE",
                f"image {_shown(image)} cannot be read ({reason}; the working folder is {str(Path.cwd())!r}). "
                "Pass the path of an image file.",
            ) from error
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] not in (3, 4) or not image.size:
            raise BadItemError(
                "WRONG_ARRAY",
                f"image is a numpy array {image.dtype} {image.shape}; it needs to be uint8 (H, W, 3) RGB or "
                "(H, W, 4) RGBA. Convert it, other numbers scaled to 0 ... 255; pass several images as a list.",
            )
        return encode_array(image)
    if _is_pillow(image):
        try:
            return encode_pillow(image)
        except NoRangeError as error:
            raise BadItemError(
                "IMAGE_NO_RANGE", f"image is a PIL image whose {error}. Scale it to 0 ... 255 and convert it to mode L."
            ) from error
        except Exception as error:  # Pillow decodes here, and its decoders raise anything
            raise BadItemError(
                "IMAGE_UNDECODABLE",
                f"image {image!r} cannot be decoded ({str(error)[:200]}). Pass one that Pillow can load.",
            ) from error
    if isinstance(image, str):
        raise BadItemError(
            "WRONG_TYPE", f"image is the str {image[:60]!r}. Pass Path(...) of a file, or .encode() of a data: URI."
        )
    raise BadItemError(
        "WRONG_TYPE", f"the item or its image is of type {type_name(image)}. Pass {IMAGES}, or a str as text."
    )


def _is_pillow(value: object) -> TypeGuard[PillowImage]:
    module = sys.modules.get("PIL.Image")  # who holds a PIL image has imported it
    return module is not None and isinstance(value, module.Image)


def _shown(path: Path) -> str:
    """Return a path as messages show it: its end, if it is long."""
    return repr(str(path)[-200:])


def _is_pixels(value: object) -> TypeGuard[npt.NDArray[Any]]:
    """Tell whether a value is an array of numbers: an image, or what the message of a wrong one explains."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
