"""The store of an index in Milvus: a collection, through pymilvus.

A row is its id, its vector and its metadata. The keys of the metadata carry the types of their values, as in
"year:number", so that Milvus compares what `_filters` compares, whatever its version makes of other types and nulls.
What the index is, stands in a property of the collection.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc

from ._checks import instance, seconds, shown
from ._exceptions import (
    ConnectError,
    InvalidInputError,
    MissingExtraError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
)
from ._extras import require
from ._filters import Condition, type_of
from ._fork import keep
from ._metadata import decode_metadata, encode_metadata
from ._similarity import blocks
from ._store import HNSW_OPTIONS, IndexInfo, Match, Matches, Vectors, choose

KINDS: dict[str, dict[str, int]] = {  # with their options
    "flat": {},
    "hnsw": HNSW_OPTIONS,
}
PROPERTY = "vlembed.index"  # of the collection: IndexInfo
NOTHING = 'id == ""'  # no id is empty
MAX_NAME_LETTERS = 255  # Milvus's of a collection
MAX_ID_BYTES = 1024
MAX_METADATA_BYTES = 65_536  # Milvus's of a JSON value
MAX_K = 16_384  # Milvus's
MAX_REQUEST_BYTES = 32 << 20  # Milvus takes messages of 64 MiB
MAX_QUERIES = 16_384  # Milvus's of a request
MAX_INTEGER = 2**63 - 1  # Milvus's in a JSON value
MAX_IDS = 1_000  # of a filter
CONNECT_PAUSES_S = (0.2, 1.0)  # between the attempts to connect
MIN_TIMEOUT_S = 0.1  # of the last one


class MilvusStore:
    """A collection; other processes may change it too. Searches see every change that was made before them."""

    def __init__(
        self, connect: Callable[[], Any], client: Any, collection: str, info: IndexInfo, timeout_s: float
    ) -> None:
        self._connect, self._client = connect, client
        self._collection, self._info, self._timeout_s = collection, info, timeout_s
        self._connecting = threading.Lock()
        self._is_closed = False

    @classmethod
    def connect(
        cls, uri: str, collection: str, asked: IndexInfo | None, *, token: str, timeout_s: float
    ) -> MilvusStore:
        """Open a collection, or create it as asked if it is not there.

        Raises
        ------
        ConnectError
            Milvus cannot be reached.
        InvalidInputError
            The collection is another program's, or it is not there and nothing was asked.
        """
        timeout_s = seconds("timeout_s", timeout_s)
        instance("collection", collection, str)
        if not (collection.isidentifier() and collection.isascii()) or len(collection) > MAX_NAME_LETTERS:
            raise InvalidInputError(
                f"collection is {shown(collection)}. Use up to {MAX_NAME_LETTERS} ASCII letters, digits and "
                "underscores, not a digit first."
            )
        pymilvus = require("pymilvus", "milvus")
        if uri.endswith(".db") and find_spec("milvus_lite") is None:
            raise MissingExtraError("milvus-lite opens .db files and is not installed: pip install milvus-lite")
        connect = partial(_open, pymilvus, uri, token, timeout_s)
        client = connect()
        try:
            with _told():
                if client.has_collection(collection, timeout=timeout_s):
                    info = _read_info(client.describe_collection(collection, timeout=timeout_s))
                elif asked is None:
                    raise InvalidInputError(
                        f"{shown(uri)} has no collection {collection!r}. To create it, pass a client, or dimensions "
                        "and a fingerprint."
                    )
                else:
                    info = replace(asked, options=choose(asked.kind, asked.options, KINDS))
                    _create(client, collection, info, timeout_s)
                client.load_collection(collection, timeout=timeout_s)
        except BaseException:
            client.close()
            raise
        return cls(connect, client, collection, info, timeout_s)

    @property
    def info(self) -> IndexInfo:
        return self._info

    def __len__(self) -> int:
        with _told():
            rows = self._milvus.query(self._collection, filter="", output_fields=["count(*)"], timeout=self._timeout_s)
        return int(rows[0]["count(*)"])

    def held(self, ids: Sequence[str]) -> set[str]:
        with _told():
            return {
                row["id"]
                for some in blocks(len(ids), MAX_IDS)
                for row in self._milvus.query(
                    self._collection,
                    filter=_among(ids[some]),
                    output_fields=["id"],
                    timeout=self._timeout_s,
                )
            }

    def check(self, ids: Sequence[str], metadata: Sequence[str]) -> None:
        for own, text in zip(ids, metadata, strict=True):
            _check_row(own, text)
        with _told():
            now = _read_info(self._milvus.describe_collection(self._collection, timeout=self._timeout_s))
        if now != self._info:
            raise InvalidInputError(
                f"the collection {self._collection!r} was dropped and made again, as {now}. Connect again."
            )

    def add(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        self._write(self._milvus.insert, ids, vectors, metadata)

    def upsert(self, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        self._write(self._milvus.upsert, ids, vectors, metadata)

    def delete(self, ids: Iterable[str]) -> int:
        held = sorted(self.held(list(ids)))
        with _told():
            for some in blocks(len(held), MAX_IDS):
                self._milvus.delete(self._collection, filter=_among(held[some]), timeout=self._timeout_s)
        return len(held)

    def search(self, vectors: Vectors, k: int, conditions: Sequence[Condition]) -> Matches:
        if k > MAX_K:
            raise InvalidInputError(f"k is {k}; Milvus returns {MAX_K} rows at most. Pass a smaller one.")
        effort = {"ef": max(self._info.options["ef_search"], k)} if self._info.kind == "hnsw" else {}
        step = min(MAX_QUERIES, max(1, MAX_REQUEST_BYTES // vectors[0].nbytes)) if len(vectors) else 1
        with _told():
            found = [
                hits
                for rows in blocks(len(vectors), step)
                for hits in self._milvus.search(
                    self._collection,
                    data=vectors[rows],
                    limit=k,
                    filter=" and ".join(map(_expression, conditions)),
                    output_fields=["metadata"],
                    search_params={"params": effort},
                    timeout=self._timeout_s,
                )
            ]
        return Matches(range(len(found)), lambda query: list(map(_match, found[query])))

    def save(self, path: Path) -> None:
        raise InvalidInputError(
            f"this index is the collection {self._collection!r} in Milvus, which keeps it: there is nothing to save to "
            f"{str(path)!r}. Milvus makes backups."
        )

    def close(self) -> None:
        with self._connecting:
            if self._client is not None:
                self._client.close()
            self._client, self._is_closed = None, True

    def after_fork(self, *, is_changing: bool) -> bool:
        keep(self._client)
        self._client = None
        self._connecting = threading.Lock()
        return True  # the rows are in Milvus

    @property
    def _milvus(self) -> Any:
        with self._connecting:
            if self._is_closed:
                raise ConnectError("this index is closed. Connect again.")
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _write(self, send: Any, ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> None:
        with _told():
            for rows in _requests(ids, vectors, metadata):
                send(self._collection, rows, timeout=self._timeout_s)


def new_connection() -> dict[str, Any]:
    """Return what keeps pymilvus 2 and 3 from sharing a connection, which may be that of a forked process's parent."""
    return {"alias": f"vlembed-{secrets.token_hex(8)}", "dedicated": True}


def _open(pymilvus: Any, uri: str, token: str, timeout_s: float) -> Any:
    """Return a connected client; a server that has just begun to listen may refuse the first attempts."""
    deadline, pauses_s = time.monotonic() + timeout_s, iter(CONNECT_PAUSES_S)
    while True:
        try:
            left_s = max(deadline - time.monotonic(), MIN_TIMEOUT_S)
            return pymilvus.MilvusClient(uri, token=token, timeout=left_s, **new_connection())
        except pymilvus.MilvusException as error:
            pause_s = next(pauses_s, math.inf)
            if time.monotonic() + pause_s > deadline:
                cure = "One process at a time can open it." if uri.endswith(".db") else "Check the URI."
                raise ConnectError(f"Milvus cannot be reached at {shown(uri)} ({error.message}). {cure}") from error
            time.sleep(pause_s)


def _create(client: Any, collection: str, info: IndexInfo, timeout_s: float) -> None:
    types = require("pymilvus", "milvus").DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=info.dimensions)
    schema.add_field("metadata", types.JSON)
    hnsw = {"M": info.options["m"], "efConstruction": info.options["ef_construction"]} if info.kind == "hnsw" else {}
    index = client.prepare_index_params()
    index.add_index("vector", index_type=info.kind.upper(), metric_type="COSINE", params=hnsw)
    client.create_collection(
        collection,
        schema=schema,
        index_params=index,
        consistency_level="Strong",
        properties={PROPERTY: info.to_json()},
        timeout=timeout_s,
    )


def _read_info(described: dict[str, Any]) -> IndexInfo:
    name, properties = described["collection_name"], described.get("properties", {})
    if PROPERTY not in properties:
        raise InvalidInputError(f"the collection {name!r} was not made by vlembed. Choose another name.")
    try:
        return IndexInfo.from_json(properties[PROPERTY])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(
            f"the collection {name!r} was made by another version of vlembed ({error}). Upgrade vlembed."
        ) from error


@contextmanager
def _told() -> Iterator[None]:
    """Raise what pymilvus raises as this package's errors."""
    pymilvus = require("pymilvus", "milvus")
    try:
        yield
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise RequestTimeoutError(f"Milvus did not answer in time ({error.details()}).") from error
        raise ServerError(f"Milvus refused or failed ({error.code()}: {error.details()}).") from error
    except pymilvus.MilvusException as error:
        if isinstance(error.code, grpc.StatusCode):  # pymilvus's way to say that it tried again until the timeout
            raise ConnectError(f"the connection to Milvus is lost ({error.message}).") from error
        raise ServerError(f"Milvus refused or failed (code {error.code}: {error.message}).") from error


def _typed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as Milvus gets it."""
    return {f"{key}:{type_of(value)}": value for key, value in metadata.items()}


def _check_row(own: str, metadata: str) -> None:
    """Refuse what Milvus would, or would not give back as it is."""
    if (size := len(own.encode())) > MAX_ID_BYTES:
        raise InvalidInputError(f"the id {own[:40]!r}... has {size} bytes; Milvus takes {MAX_ID_BYTES}. Shorten it.")
    fields = decode_metadata(metadata)
    typed = _typed(fields)
    if (size := len(encode_metadata(typed).encode())) > MAX_METADATA_BYTES:
        raise InvalidInputError(
            f"the metadata of {shown(own)} has {size} bytes; Milvus takes {MAX_METADATA_BYTES}. Keep what is long "
            "elsewhere."
        )
    for name, value in fields.items():
        for number in _integers(value):
            if not -MAX_INTEGER <= number <= MAX_INTEGER:
                raise InvalidInputError(
                    f"the metadata of {shown(own)} has the number {shown(number)} in {shown(name)}; Milvus takes those "
                    "of 64 bits. Pass a str of it."
                )


def _integers(value: Any) -> Iterator[int]:
    """Yield the integers in a value of JSON."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | dict):
        for own in value.values() if isinstance(value, dict) else value:
            yield from _integers(own)


def _match(hit: Mapping[str, Any]) -> Match:
    typed = deepcopy(hit["entity"]["metadata"])
    return Match(hit["id"], hit["distance"], {key.rpartition(":")[0]: value for key, value in typed.items()})


def _requests(ids: Sequence[str], vectors: Vectors, metadata: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows as Milvus takes them, in requests within its bound."""
    rows: list[dict[str, Any]] = []
    size = 0
    for own, vector, text in zip(ids, vectors, metadata, strict=True):
        row_size = vector.nbytes + 4 * (len(own) + len(text))  # at most 4 bytes of a character
        if rows and size + row_size > MAX_REQUEST_BYTES:
            yield rows
            rows, size = [], 0
        rows.append({"id": own, "vector": vector, "metadata": _typed(decode_metadata(text))})
        size += row_size
    if rows:
        yield rows


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _among(ids: Sequence[str]) -> str:
    return f"id in [{', '.join(map(_literal, ids))}]"


def _expression(condition: Condition) -> str:
    """Write a condition in Milvus's language; "in" as alternatives, which is all that milvus-lite takes of a key."""
    alternatives = []
    for value in condition.values:
        key = f"metadata[{_literal(f'{condition.field}:{type_of(value)}')}]"
        alternatives.append(f"(exists {key} and {key} {condition.operator} {_literal(value)})")
    return f"({' or '.join(alternatives)})" if alternatives else NOTHING
