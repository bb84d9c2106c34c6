"""Everything that this package raises.

VlembedError
├── InvalidInputError      what was asked is wrong; also a ValueError
├── ConnectError           the server cannot be reached, is stopping, or the connection broke
├── RequestTimeoutError    no answer in time
├── OverloadedError        the server takes no more now; the same request may do later
├── ServerError            the server failed, or refused for another reason
├── ProtocolError          what answered does not speak as a vlembed server does
├── OutputError            the files of a bulk run cannot be written, are in use, or are damaged
└── MissingExtraError      a library is not installed that only this feature needs; also an ImportError
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ItemError:
    """What is wrong with one item."""

    index: int  # in the caller's sequence
    code: str  # for programs, for example IMAGE_UNDECODABLE
    message: str  # the value, the rule and the cure


class VlembedError(Exception):
    """The base of all errors of this package."""


class InvalidInputError(VlembedError, ValueError):
    """What was asked is wrong.

    Parameters
    ----------
    message
        A sentence for people.
    items
        Every bad item; empty if not an item is at fault but an option.
    code
        What is wrong with the request as a whole, for programs; empty if only the items say it.
    """

    def __init__(self, message: str, items: Sequence[ItemError] = (), code: str = "") -> None:
        super().__init__(message)
        self.items = tuple(items)
        self.code = code

    @classmethod
    def of_items(cls, items: Sequence[ItemError], num_items: int) -> InvalidInputError:
        """Describe the first bad item, count the others and list all."""
        first = items[0]
        others = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
        return cls(f"item {first.index} of {num_items}: {first.message}{others}", items)


class ConnectError(VlembedError):
    """The server cannot be reached, is stopping, or the connection broke."""


class RequestTimeoutError(VlembedError):
    """No answer came in time."""


class OverloadedError(VlembedError):
    """The server takes no more now; the same request may do later."""


class ServerError(VlembedError):
    """The server failed, or refused for another reason than the input."""


class ProtocolError(VlembedError):
    """What answered does not speak as a vlembed server does."""


class OutputError(VlembedError):
    """The files of a bulk run cannot be written, are in use, or are damaged."""


class MissingExtraError(VlembedError, ImportError):
    """A library is not installed that only this feature needs."""
