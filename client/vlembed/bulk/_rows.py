"""What a row means: which fields are the item, which its id, and what of it is metadata.

Knows columns and items; knows nothing of files or servers.
"""

from __future__ import annotations

import base64
import datetime
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from .._exceptions import InvalidInputError
from .._filters import is_plain
from .._items import Item
from .._metadata import encode_metadata, iso_duration
from .._paths import is_url
from ._format import KEY, BadRowError


@dataclass(frozen=True)
class Columns:
    """The names of the columns that make an item.

    Its metadata are all others, except binary ones, and, where no other has that name, `text` and, unless the image is
    in the table itself, `image`: its path, relative to the folder that all inputs are in.

    An image is a path relative to its file, the text of a data: URI, bytes, or, as `datasets` writes it,
    {"bytes": ..., "path": ...}, where JSON spells bytes in base64.
    """

    id: str = "id"
    text: str = "text"
    image: str = "image"
    instruction: str = "instruction"

    def __post_init__(self) -> None:
        names = list(vars(self).values())
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise InvalidInputError(f"columns are {names!r}. Give id, text, image and instruction a name each.")

    def check(self, names: list[str], path: Path) -> None:
        """Refuse a table without text and image, without a column that was asked for by name, or with one twice.

        Raises
        ------
        InvalidInputError
            Listing the columns that there are.
        """
        if twice := [own for own, count in Counter(names).items() if count > 1]:
            raise InvalidInputError(f"{str(path)!r} has several columns {twice}. Give every column a name of its own.")
        missing = [own for role, own in vars(self).items() if own != role and own not in names]
        if missing or not {self.text, self.image} & set(names):
            raise InvalidInputError(
                f"{str(path)!r} has the columns {names}, but no {' or '.join(missing or [self.text, self.image])}. "
                "Name the columns of text, image and id with Columns."
            )


@dataclass(frozen=True)
class Row:
    """A row that can be sent."""

    position: int  # in the whole input, from 0
    id: str
    place: str  # its file and number
    metadata: str  # a JSON object
    item: Item


@dataclass(frozen=True)
class Failure:
    """A row without a vector, and why."""

    position: int
    id: str
    place: str
    code: str  # for programs, for example IMAGE_UNDECODABLE
    message: str


def to_row(
    fields: Mapping[str, Any] | BadRowError, columns: Columns, position: int, place: str, root: Path, name: str
) -> Row | Failure:
    """Make a row of fields.

    Parameters
    ----------
    fields
        By the names of their columns.
    columns
        Those of the item.
    position
        Of the row in the whole input.
    place
        The row's file and number, which are its id if it has none of its own.
    root, name
        The folder of all inputs, and the row's file in it. Paths of images begin beside that file.
    """
    own_id = place
    try:
        if isinstance(fields, BadRowError):
            raise fields
        rest = dict(fields)
        own_id = f"{name}:{rest.pop(KEY)}" if KEY in rest else place
        own = {role: rest.pop(column, None) for role, column in vars(columns).items()}
        own_id = _id(own["id"], own_id)
        item = _item(own, Path(name).parent, sorted(fields))
        metadata = item_metadata(item.text, str(item.image) if isinstance(item.image, Path) else "", rest)
        if isinstance(item.image, Path):
            item = replace(item, image=root / item.image)
        row = Row(position, own_id, place, _encode(metadata), item)
    except BadRowError as error:
        own_id = own_id if error.key is None else f"{name}:{error.key}"
        return Failure(position, own_id, place, error.code, str(error))
    return row


def _id(value: object, default: str) -> str:
    value = default if value is None or value == "" else value
    if isinstance(value, bool) or not isinstance(value, str | int) or not is_plain(str(value)):
        raise BadRowError(
            "ID_WRONG", f"the id {value!r:.60} is neither a line of text nor a whole number. Give another."
        )
    return str(value)


def _item(own: Mapping[str, Any], folder: Path, names: list[str]) -> Item:
    text = None if own["text"] == "" else own["text"]
    image = _image(own["image"], folder)
    if text is not None and not isinstance(text, str):
        raise BadRowError("WRONG_TYPE", f"the text is {text!r:.60}; it needs to be a string.")
    if text is None and image is None:
        raise BadRowError("ITEM_EMPTY", f"the row has neither text nor image, only {names}. Give it one.")
    return Item(text=text, image=image, instruction=own["instruction"] or None)


def _image(value: Any, folder: Path) -> Path | bytes | None:
    if isinstance(value, Mapping):  # as the library datasets writes it
        value = _decode_base64(value["bytes"]) if value.get("bytes") else value.get("path")
    if value is None or value == "" or value == b"":
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, Path):
        return folder / value
    if not isinstance(value, str):
        raise BadRowError("WRONG_TYPE", f"the image is {value!r:.60}; it needs to be a path, bytes or a data: URI.")
    if value.startswith("data:"):
        return value.encode()
    if is_url(value):
        raise BadRowError("IMAGE_IS_URL", f"the image {value[:60]!r} is a URL, and nothing is fetched. Download it.")
    return folder / value


def _decode_base64(value: Any) -> bytes:
    try:
        return value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as error:
        raise BadRowError(
            "IMAGE_UNDECODABLE", f"the bytes of the image are no base64 ({error}). Encode them."
        ) from None


def item_metadata(text: str | None, image: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of an item beside its vector: its text, the path of its image, and its other fields."""
    own = {"text": text, "image": image}
    return {name: value for name, value in own.items() if value} | dict(fields)


def _encode(metadata: Mapping[str, Any]) -> str:
    try:
        return encode_metadata(_as_metadata(metadata)) or "{}"
    except InvalidInputError as error:
        if isinstance(error.__cause__, UnicodeEncodeError):
            message = f"the row cannot be UTF-8 ({error.__cause__}). Save the input as UTF-8."
            raise BadRowError("TEXT_NOT_UTF8", message) from error
        raise BadRowError("METADATA_WRONG", str(error)) from error
    except RecursionError as error:
        raise BadRowError("ROW_MALFORMED", "the row's metadata is nested too deeply. Flatten it.") from error


def _as_metadata(value: Any) -> Any:
    """Leave out bytes, and return NaN as None, decimals and durations as texts: files have them, metadata have not."""
    if isinstance(value, float) and math.isnan(value):  # what pandas writes for what is missing
        return None
    if isinstance(value, Mapping):
        return {name: _as_metadata(own) for name, own in value.items() if not isinstance(own, bytes)}
    if isinstance(value, list | tuple):
        return [_as_metadata(own) for own in value if not isinstance(own, bytes)]
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return iso_duration(value // datetime.timedelta(microseconds=1) * 1000)
    return value
