"""Where an index is: a file, or a collection in Milvus, spelled as one argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .._client import EmbeddingClient
from .._exceptions import InvalidInputError
from .._index import Index
from .._milvus_store import KINDS
from .._paths import is_url
from .._store import HNSW_OPTIONS, choose
from ._inputs import Command, complete_file
from ._root import InputError

MILVUS = re.compile(r"milvus\+(?:file:)?(?P<uri>(?<=\+)https?://.+|(?<=file:).+\.db)/(?P<collection>[^/]+)")


@dataclass(frozen=True)
class Place:
    """A file, or where `uri` is given a collection in Milvus."""

    name: str  # as it was given
    uri: str = ""
    collection: str = ""
    token: str = ""
    stamp: tuple[int, int] | None = None  # of the file before the command began

    @property
    def path(self) -> Path | None:
        """Return its file, None if it is on a server."""
        return None if "://" in self.uri else Path(self.uri or self.name)

    def open(self, client: EmbeddingClient | None = None) -> Index:
        """Open an index that is there and, if a client is given, of the model of its server."""
        if self.path and not (self.path.exists() if self.uri else self.path.is_file()):  # milvus-lite would make it
            raise InputError(f"there is no index {self.name!r}. Make it with `vlembed index create`.")
        index = Index.connect(self.uri, self.collection, token=self.token) if self.uri else Index.load(self.name)
        if client and (served := client.info().fingerprint) != index.info.fingerprint:
            index.close()
            raise InputError(
                f"{self.name!r} is of the model with fingerprint {index.info.fingerprint!r}, but the server's has "
                f"{served!r}. Use a server of that model, or make a new index."
            )
        return index

    def prepare(self, **options: Any) -> Callable[[], Index]:
        """Return what makes an empty index where none is; the options are those of `Index.create`.

        Raises
        ------
        InputError, InvalidInputError
            One with rows is there, or none can be made so.
        """
        if not self.uri:
            index = self._create_file(**options)
            return lambda: index
        if self.path is None or self.path.exists():
            with suppress(InvalidInputError), self.open() as there:  # none is there, or whoever makes it says more
                if num_rows := len(there):
                    raise InputError(f"{self.name!r} has {num_rows} rows. `vlembed index add` adds to it.")
        of_kind = {name: value for name, value in options.items() if name in HNSW_OPTIONS}
        choose(options.get("kind", "hnsw"), of_kind, KINDS)
        return lambda: self.open_or_create(**options)

    def _create_file(self, **options: Any) -> Index:
        path = Path(self.name)
        if path.exists() or not path.parent.is_dir():
            reason = "exists" if path.exists() else "is in no folder that exists"
            raise InputError(f"{self.name!r} {reason}. Name a new file; `vlembed index add` adds to an index.")
        return Index.create(**options)

    def open_or_create(self, **options: Any) -> Index:
        """Open an index that agrees with the options, or make one."""
        if self.uri:
            return Index.connect(self.uri, self.collection, token=self.token, **options)
        if not Path(self.name).exists():
            return self._create_file(**options)
        index = self.open()
        index.info.check(options, repr(self.name), "name a new file")
        return index

    def save(self, index: Index) -> None:
        """Write the file, which nobody else may have changed meanwhile; Milvus has kept every change already.

        Raises
        ------
        OSError
            Somebody has, or it cannot be written.
        """
        if not self.uri:
            if stamp_of(self.name) != self.stamp:
                raise OSError(f"{self.name!r} was changed by another program meanwhile. Run this command again.")
            index.save(self.name)


def stamp_of(path: str) -> tuple[int, int] | None:
    """Return what changes with a file, None if there is none."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def takes_place(command: Command) -> Command:
    """Add the argument that names an index; the command gets a `Place` as `place`."""

    @click.argument("index", metavar="INDEX", shell_complete=complete_file)
    @click.option(
        "--milvus-token",
        default="",
        envvar="VLEMBED_MILVUS_TOKEN",
        show_envvar=True,
        metavar="TOKEN",
        help="user:password or an API key, for an INDEX in Milvus.",
    )
    @wraps(command)
    def wrapped(*args: Any, index: str, milvus_token: str, **kwargs: Any) -> Any:
        parts = MILVUS.fullmatch(index)
        if parts and index.startswith("milvus+file:") and is_url(parts["uri"]):
            parts = None
        if (index.startswith("milvus+") or is_url(index)) and not parts:
            raise click.UsageError(
                f"INDEX is {index!r}. Give the name of a file, milvus+http://host:19530/COLLECTION, or "
                "milvus+file:PATH.db/COLLECTION, whose file ends in .db."
            )
        if parts:
            place = Place(index, parts["uri"], parts["collection"], milvus_token)
        else:
            place = Place(index, stamp=stamp_of(index))
        return command(*args, place=place, **kwargs)

    return wrapped
