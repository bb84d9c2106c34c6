"""What is wrong with an item or with a pack, for people and for programs. No message grows with the input."""

from __future__ import annotations

import json
from collections.abc import Mapping

AGAIN = "Fetch or encode it again."  # the cure of a file that is broken
MAX_ERROR_BYTES = 6000  # a gRPC client takes 8192 of metadata, which carry the error, unless it asks for more


class ItemError(ValueError):
    """One item of a pack is invalid; `code` says how in one word, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PackError(ValueError):
    """A pack is refused. The message is a line for people, then a JSON object for programs, with every bad item.

    Index and code of every item are always there; its message is too, as long as the whole stays a legal gRPC error.
    """

    def __init__(self, code: str, message: str, items: Mapping[int, ItemError] | None = None) -> None:
        bad = sorted((items or {}).items())
        details = [{"index": index, "code": error.code, "message": ""} for index, error in bad]
        size_bytes = len(json.dumps([message, details]))
        for detail, (_, error) in zip(details, bad, strict=True):
            size_bytes += len(json.dumps(str(error)))
            if size_bytes > MAX_ERROR_BYTES:
                break
            detail["message"] = str(error)
        super().__init__(f"{message}\n{json.dumps({'code': code, 'items': details})}")
        self.code = code
        self.codes = {error.code for _, error in bad} or {code}  # what is wrong, of the items if they say it

    @classmethod
    def of_items(cls, errors: Mapping[int, ItemError], num_items: int) -> PackError:
        """Refuse a pack for its bad items, all of them at once."""
        first = min(errors)
        others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return cls("INVALID_ITEMS", f"item {first} of {num_items}: {errors[first]}{others}", errors)


def shown(value: object, limit: int = 60) -> str:
    """Return the start of a value of the input, as every message shows it: printable and bounded.

    Parameters
    ----------
    value
        Bytes or text of the input, or an exception, whose words may hold some.
    limit
        Bytes or characters of it.
    """
    if isinstance(value, Exception):
        words = str(value) or type(value).__name__
        return words[: 2 * limit].encode("unicode_escape").decode()
    if isinstance(value, bytes | str):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    return repr(value)[:limit]
