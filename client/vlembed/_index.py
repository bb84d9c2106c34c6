"""The index: items or vectors in, with ids and metadata; the most similar ones out.

Embeds what it is given if it has a client, and keeps the vectors of other models out. `_index_input` checks arguments,
and where the rows are is a store's matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from ._checks import whole_number
from ._client import DEFAULT_QUERY_INSTRUCTION, EmbeddingClient, ItemOptions
from ._exceptions import InvalidInputError, ServerError, VlembedError
from ._faiss_store import FaissStore
from ._filters import Where, parse_where
from ._fork import call_after_fork
from ._index_input import Batch, Items, as_batch, check_ids, check_options, check_rows, listed, new_info
from ._items import ItemLike
from ._milvus_store import MilvusStore
from ._paths import local_path
from ._result import Embeddings
from ._similarity import blocks, row_norms, unit
from ._store import IndexInfo, Match, Matches, Store, Vectors

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

BLOCK_ROWS = 8192  # that are normalised at a time


class Index:
    """Vectors under ids, with metadata, searched by text, image, both or a vector; a score is the cosine.

    Make one with `Index.create` or `Index.load` (in this process, by FAISS), or `Index.connect` (in Milvus). Threads
    may share it: searches run side by side, and each sees a block of rows that is being added either whole or not yet.
    """

    def __init__(self, store: Store, client: EmbeddingClient | None) -> None:
        self._sound_store: Store | None = store
        self._client = client
        self._changing = threading.Lock()
        call_after_fork(self._after_fork)
        if client is not None:
            self.info.check_model("the client's server embeds", client.info().fingerprint)

    @classmethod
    def create(
        cls,
        kind: str = "flat",
        *,
        client: EmbeddingClient | None = None,
        dimensions: int | None = None,
        fingerprint: str | None = None,
        instruction: str = DEFAULT_QUERY_INSTRUCTION,
        **options: int,
    ) -> Index:
        """Make an empty index in memory.

        Parameters
        ----------
        kind
            "flat" compares a query with every vector. "hnsw" walks a graph. "ivfpq" keeps codes alone, of a
            sixteenth of the size, and its scores are estimates. "int8" and "binary" pick candidates by codes and score
            them by the vectors, which `load` leaves on the disk.
        client
            Embeds items and queries; without one the index takes vectors only.
        dimensions
            d of its vectors, a Matryoshka size; the server's by default.
        fingerprint
            Of the model whose vectors it is for; the server's by default.
        instruction
            Of queries: what is to be found. Documents are embedded under the model's default.
        **options
            hnsw: `m` links of a vector, `ef_construction` and `ef_search`, the breadth of building and searching.
            ivfpq: `train_size`, the vectors that it gathers, and searches exhaustively, before it learns a list for
            every 40 of them; `nprobe`, the lists that it searches; `code_bytes` of a vector.
            int8: `train_size` as above, for the ranges of its codes. int8 and binary: `oversampling`, candidates per k.

        Raises
        ------
        InvalidInputError
            Naming the argument that is wrong.
        MissingExtraError
            FAISS is not installed.
        """
        return cls(FaissStore(new_info(kind, client, dimensions, fingerprint, instruction, options)), client)

    @classmethod
    def load(cls, path: str | Path, *, client: EmbeddingClient | None = None) -> Index:
        """Open a file that `save` wrote, and check every byte of it.

        The vectors of flat, int8 and binary indexes stay in the file, where a search reads those that it needs, until
        the first change reads them all: replace the file by another one (`save`, mv) and never write into it (cp). Open
        no files of strangers: FAISS guards against damage, not malice.

        Raises
        ------
        InvalidInputError
            The path is a URL; the file is none that `save` wrote, damaged, or newer; or the client's server serves
            another model.
        """
        return cls(FaissStore.load(local_path(path, "the index's path")), client)

    @classmethod
    def connect(
        cls,
        uri: str | Path,
        collection: str,
        *,
        kind: str | None = None,
        client: EmbeddingClient | None = None,
        dimensions: int | None = None,
        fingerprint: str | None = None,
        instruction: str | None = None,
        token: str = "",
        timeout_s: float = 60.0,
        **options: int,
    ) -> Index:
        """Open a collection in Milvus, or create it if it is not there.

        Every search sees what was changed before it, by any process. Let one process at a time add: Milvus itself keeps
        an id that two of them add twice.

        Parameters
        ----------
        uri
            "http://host:19530" of a server or a cluster; or a file that ends in .db, which milvus-lite opens in this
            process, for one process at a time.
        collection
            ASCII letters, digits and underscores.
        kind, **options
            Of a new collection: "hnsw", the default, or "flat", as for `create`.
        client, dimensions, fingerprint, instruction
            As for `create`; what is given needs to be what an old collection has.
        token
            "user:password" or an API key.
        timeout_s
            Of one request to Milvus.

        Raises
        ------
        ConnectError
            Milvus cannot be reached.
        InvalidInputError
            The collection is another program's, or differs from what is given.
        MissingExtraError
            pymilvus, or for a .db file milvus-lite, is not installed.
        """
        if isinstance(uri, Path) or str(uri).endswith(".db"):
            uri = local_path(uri, "uri")
        new = None
        if client is not None or (dimensions is not None and fingerprint is not None):
            asked = DEFAULT_QUERY_INSTRUCTION if instruction is None else instruction
            new = new_info(kind or "hnsw", client, dimensions, fingerprint, asked, options)
        store = MilvusStore.connect(str(uri), collection, new, token=token, timeout_s=timeout_s)
        given = dict(kind=kind, dimensions=dimensions, fingerprint=fingerprint, instruction=instruction, **options)
        try:
            store.info.check(given, f"the collection {collection!r}", "choose another collection")
            return cls(store, client)
        except BaseException:
            store.close()
            raise

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError(
            "an index cannot be pickled or copied. Save it and load it where it is needed (Index.save, Index.load); "
            "one in Milvus is opened there by Index.connect."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to Milvus; an index in this process has none. The client stays open."""
        if self._sound_store is not None:
            self._sound_store.close()

    def __len__(self) -> int:
        return len(self._store)

    @property
    def _store(self) -> Store:
        if self._sound_store is None:
            raise InvalidInputError(
                "this index was being changed or saved by another thread when the process was forked, so what the "
                "child has of it may be torn. Load it again in the child, or fork between changes."
            )
        return self._sound_store

    def _after_fork(self) -> None:
        if self._sound_store is None or not self._sound_store.after_fork(is_changing=self._changing.locked()):
            self._sound_store = None
        self._changing = threading.Lock()

    @property
    def info(self) -> IndexInfo:
        """What it holds, and how it is searched."""
        return self._store.info

    def save(self, path: str | Path) -> None:
        """Write an index of this process to a file, which others see whole or, until then, as it was.

        Searches go on meanwhile, changes wait. A process that is killed leaves a hidden file whose name ends in .tmp.

        Raises
        ------
        InvalidInputError
            The index is in Milvus, or the path is a URL.
        OSError
            The file cannot be written.
        """
        with self._changing:
            self._store.save(local_path(path, "the index's path"))

    def add(
        self,
        items: Items,
        *,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        fingerprint: str | None = None,
        **options: Unpack[ItemOptions],
    ) -> None:
        """Add rows: all of them, or none if anything is wrong; an error says so if Milvus could not take them back.

        Parameters
        ----------
        items
            n items as for `EmbeddingClient.embed`, or their vectors: `Embeddings`, or an array of floats (n, d), which
            is normalised in blocks and not copied as a whole.
        ids
            n, all new: non-empty str without control characters.
        metadata
            n JSON objects, or None for those without.
        fingerprint
            Needed with an array: of the model that its vectors are from.
        **options
            As for `EmbeddingClient.embed`, for items.

        Raises
        ------
        InvalidInputError
            Naming what is wrong; listing every bad item.
        VlembedError
            Of another kind, if the server or Milvus cannot be reached or fails.
        """
        self._change(items, ids, metadata, fingerprint, options, is_upsert=False)

    def upsert(
        self,
        items: Items,
        *,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        fingerprint: str | None = None,
        **options: Unpack[ItemOptions],
    ) -> None:
        """Replace the rows whose ids are there, metadata included, and add the others; otherwise as `add` does.

        What is wrong with the arguments is found before anything is changed. If it is interrupted or fails half-way,
        some rows are replaced: do it again.
        """
        self._change(items, ids, metadata, fingerprint, options, is_upsert=True)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Remove rows, pass over ids that are not there, and return how many were."""
        with self._changing:
            return self._store.delete(check_ids([ids] if isinstance(ids, str) else ids))

    def search(
        self,
        query: ItemLike | Embeddings | npt.NDArray[Any],
        k: int = 10,
        *,
        where: Where | None = None,
        fingerprint: str | None = None,
        **options: Unpack[ItemOptions],
    ) -> list[Match]:
        """Return the k rows that are most similar to a query, best first.

        Parameters
        ----------
        query
            An item, embedded under the index's instruction; or its vector: `Embeddings` of one, or an array (d,).
        k
            1 or more; fewer come back only if the index has no more that meet `where`.
        where
            What the metadata has to be: `{"language": "de"}`, or with operators `{"year": {">=": 2020, "<": 2024},
            "kind": {"in": ["a", "b"]}}`; also `==`, `!=`, `<=` and `>`. All has to hold. A row without the field, or
            with a value of another type (string, number, boolean) there, is not found, whatever the operator.
        fingerprint
            Of the model that an array is from, to have it checked.
        **options
            As for `EmbeddingClient.embed`, for an item.

        Raises
        ------
        InvalidInputError
            A wrong argument, or vectors of another model or of other dimensions.
        VlembedError
            Of another kind, if the server or Milvus cannot be reached or fails.
        """
        batch = as_batch(query)
        if len(batch) != 1:
            raise InvalidInputError(f"query is {len(batch)} of them. Pass one, or call search_batch.")
        return self._search(batch, k, where, fingerprint, options)[0]

    def search_batch(
        self,
        queries: Items,
        k: int = 10,
        *,
        where: Where | None = None,
        fingerprint: str | None = None,
        **options: Unpack[ItemOptions],
    ) -> Sequence[list[Match]]:
        """Search with q queries at once, as `search` does; of each come the matches, which are made when they are read.

        Returns
        -------
        Sequence[list[Match]]
            q lists.
        """
        return self._search(as_batch(queries), k, where, fingerprint, options)

    def _search(
        self, batch: Batch, k: int, where: Where | None, fingerprint: str | None, options: ItemOptions
    ) -> Matches:
        k = whole_number("k", k, 1)
        conditions = parse_where(where)
        check_options(batch, options)
        if not isinstance(batch, Embeddings | np.ndarray):
            client, info = self._client_for("a query that is no vector"), self.info
            batch = client.embed_query(batch, info.instruction, dimensions=info.dimensions, **options)
        vectors = self._checked_vectors("queries", batch, fingerprint)
        vectors = unit(vectors, row_norms("queries", vectors, refuse_zero=True), np.float32)
        return self._store.search(vectors, k, conditions)

    def _change(
        self,
        items: Items,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None,
        fingerprint: str | None,
        options: ItemOptions,
        *,
        is_upsert: bool,
    ) -> None:
        batch = as_batch(items)
        ids, texts = check_rows(batch, ids, metadata)
        check_options(batch, options)
        self._store.check(ids, texts)
        if not is_upsert:
            self._refuse_held(ids)  # before anything is embedded
        if isinstance(batch, np.ndarray) and fingerprint is None:
            raise InvalidInputError(
                "an array does not tell what model it is from. Pass Embeddings, or the fingerprint of that model."
            )
        if not isinstance(batch, Embeddings | np.ndarray):
            client = self._client_for("an item")
            batch = client.embed_document(batch, dimensions=self.info.dimensions, **options)
        vectors = self._checked_vectors("items", batch, fingerprint)
        norms = row_norms("items", vectors, refuse_zero=True)
        with self._changing:
            if is_upsert:
                self._in_blocks(self._store.upsert, ids, vectors, norms, texts)
                return
            self._refuse_held(ids)
            try:
                self._in_blocks(self._store.add, ids, vectors, norms, texts)
            except BaseException as error:
                self._take_back(ids, error)
                raise

    def _take_back(self, ids: Sequence[str], error: BaseException) -> None:
        try:
            self._store.delete(ids)
        except VlembedError as left:
            raise ServerError(
                f"{error} What was added could not be taken back ({left}), so some rows may be there: upsert all again."
            ) from error

    def _in_blocks(
        self,
        write: Callable[[Sequence[str], Vectors, Sequence[str]], None],
        ids: Sequence[str],
        vectors: npt.NDArray[Any],
        norms: npt.NDArray[Any],
        texts: Sequence[str],
    ) -> None:
        for rows in blocks(len(ids), BLOCK_ROWS):
            write(ids[rows], unit(vectors[rows], norms[rows], np.float32), texts[rows])

    def _client_for(self, what: str) -> EmbeddingClient:
        if self._client is None:
            raise InvalidInputError(
                f"{what} needs to be embedded, but this index has no client. Pass client=EmbeddingClient(...) when you "
                "make or load the index, or pass vectors: Embeddings or an array (n, d)."
            )
        return self._client

    def _refuse_held(self, ids: Sequence[str]) -> None:
        if held := self._store.held(ids):
            raise InvalidInputError(
                f"ids are in the index already: {listed(held)}. Nothing was added; upsert replaces."
            )

    def _checked_vectors(
        self, name: str, batch: Embeddings | npt.NDArray[Any], fingerprint: str | None
    ) -> npt.NDArray[Any]:
        """Return vectors as they are, floats (n, d)."""
        if isinstance(batch, Embeddings):
            self.info.check_model(f"{name} are of", batch.fingerprint)
        if fingerprint is not None:
            self.info.check_model(f"{name} are of", fingerprint)
        vectors: npt.NDArray[Any] = np.asarray(batch)
        is_float = vectors.dtype.kind == "f" and vectors.itemsize <= 8
        if not is_float or vectors.ndim != 2 or vectors.shape[1] != self.info.dimensions:
            raise InvalidInputError(
                f"{name} are {vectors.dtype} {vectors.shape}; this index takes floats (n, {self.info.dimensions})."
            )
        return vectors
