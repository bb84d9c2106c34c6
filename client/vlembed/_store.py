"""What an index needs of the place where its vectors are: one protocol; `_faiss_store` and `_milvus_store` keep it.

Letters: n rows, q queries, d dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ._checks import one_of, shown, whole_number
from ._exceptions import InvalidInputError
from ._filters import Condition

Vectors: TypeAlias = npt.NDArray[np.float32]

HNSW_OPTIONS = {"m": 32, "ef_construction": 200, "ef_search": 128}  # of every store's graph
OPTION_BOUNDS = {"m": (2, 2048)}  # Milvus's
ANY_OPTION_BOUNDS = (1, 2**31 - 1)
NORMALISATION = "l2"


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds, and how it is searched."""

    fingerprint: str  # of the model; vectors of another one are refused
    dimensions: int
    instruction: str  # of queries; documents have the model's default
    kind: str
    options: Mapping[str, int] = field(default_factory=dict)  # of the kind
    normalisation: str = NORMALISATION  # of every vector, so that a score is the cosine

    def check(self, given: Mapping[str, Any], name: str, other: str) -> None:
        """Refuse fields and options that are given, and not None, with other values than these.

        Parameters
        ----------
        given
            Values by field or option.
        name, other
            What this is of, and what else to choose, for the message.

        Raises
        ------
        InvalidInputError
            Naming the first one.
        """
        has = {**vars(self), **self.options}
        for field_name, value in given.items():
            if value is not None and value != has.get(field_name):
                raise InvalidInputError(
                    f"{field_name} is {shown(value)}, but {name} has {has.get(field_name)!r}. Leave it out, or {other}."
                )

    def check_model(self, what: str, fingerprint: str) -> None:
        """Refuse another model than this index's.

        Parameters
        ----------
        what
            Is of the model, for the message: a subject and its verb.
        fingerprint
            Of the model.

        Raises
        ------
        InvalidInputError
            Naming both models.
        """
        if fingerprint != self.fingerprint:
            raise InvalidInputError(
                f"{what} the model with fingerprint {shown(fingerprint)}, but the index holds vectors of "
                f"{self.fingerprint!r}; they have nothing in common. Use a server of that model, or make a new "
                "index and embed the items again."
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> IndexInfo:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError if it did not."""
        info = cls(**json.loads(text))
        if info.normalisation != NORMALISATION:
            raise ValueError(f"normalisation is {info.normalisation!r} and not {NORMALISATION!r}")
        return info


class Match(NamedTuple):
    """A row that was found."""

    id: str
    score: float  # the cosine, higher is more similar; of the kind ivfpq an estimate of it
    metadata: dict[str, Any]


class Matches(Sequence[list[Match]]):
    """The matches of q queries, a list of each, best first; they are made when they are read."""

    def __init__(self, queries: range, read: Callable[[int], list[Match]]) -> None:
        self._queries, self._read = queries, read

    def __len__(self) -> int:
        return len(self._queries)

    @overload
    def __getitem__(self, index: int) -> list[Match]: ...
    @overload
    def __getitem__(self, index: slice) -> Matches: ...
    def __getitem__(self, index: int | slice) -> list[Match] | Matches:
        if isinstance(index, slice):
            return Matches(self._queries[index], self._read)
        return self._read(self._queries[index])

    def __reduce__(self) -> tuple[type[Matches], tuple[range, Callable[[int], list[Match]]]]:
        return Matches, (range(len(self)), list(self).__getitem__)

    def __repr__(self) -> str:
        return f"<Matches of {len(self)} queries>"


class Store(Protocol):
    """Where vectors are kept and searched. What it is given is checked; several threads use it at once."""

    @property
    def info(self) -> IndexInfo: ...

    def __len__(self) -> int: ...

    def held(self, ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are here."""

    def check(self, ids: Sequence[str], metadata: Sequence[str]) -> None:
        """Refuse rows that cannot be kept here, before any of them is changed.

        Raises
        ------
        InvalidInputError
            Naming the first of them, and the limit.
        """

    def add(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        """Add rows whose ids are not here.

        Parameters
        ----------
        ids
            n, all different.
        vectors
            float32 (n, d), unit norm.
        metadata
            n, as `encode_metadata` writes it.
        """

    def upsert(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        """Replace the rows whose ids are here, and add the others."""

    def delete(self, ids: Iterable[str]) -> int:
        """Remove the rows of ids that are here, and return how many those were."""

    def search(self, vectors: Vectors, k: int, conditions: Sequence[Condition]) -> Matches:
        """Return the k best rows of each query as they are now, fewer only if fewer meet the conditions.

        Parameters
        ----------
        vectors
            float32 (q, d), unit norm.
        k
            1 or more.
        conditions
            All of them have to be met.
        """

    def save(self, path: Path) -> None:
        """Write a file, or refuse if the rows are kept elsewhere."""

    def close(self) -> None:
        """Let go of connections and files."""

    def after_fork(self, *, is_changing: bool) -> bool:
        """Put new locks and connections in the place of the parent's, and tell whether the child can use the rows.

        Parameters
        ----------
        is_changing
            Another thread was at work on a change, or on a copy for a file, when the process was forked.
        """


def choose(kind: str, options: Mapping[str, int], offered: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Check a kind and its options, and complete them by their defaults.

    Raises
    ------
    InvalidInputError
        Naming what is wrong, and what is offered.
    """
    one_of("kind", kind, offered)
    defaults = offered[kind]
    for name in options:
        if name not in defaults:
            known = f"takes {', '.join(defaults)}" if defaults else "takes none"
            raise InvalidInputError(f"{name[:80]} is no option of an index of kind {kind!r}, which {known}.")
    checked = {
        name: whole_number(name, value, *OPTION_BOUNDS.get(name, ANY_OPTION_BOUNDS)) for name, value in options.items()
    }
    return {**defaults, **checked}
