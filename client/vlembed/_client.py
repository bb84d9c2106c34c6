"""The client: items in, vectors out, by as many requests as the server's bounds ask for.

Knows neither formats nor protocols: `_items` reads what the caller passes, `_packing` splits it, a transport sends it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from ._connect import open_transport
from ._exceptions import InvalidInputError, ItemError, ProtocolError, RequestTimeoutError, VlembedError
from ._info import ServerInfo
from ._items import ItemLike, as_sequence, check_bounds, prepare
from ._packing import split
from ._request import Call, Outcome
from ._result import Embeddings, concatenate
from ._similarity import Metric, similarity
from ._transport import TLS, Transport

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

DEFAULT_QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."
NO_TOKENS = np.empty(0, np.int32)
MAX_TIMEOUT_S = 86_400  # sockets take no more than some weeks, and nobody waits so long
PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 0.2


class ItemOptions(TypedDict, total=False):
    """The keyword arguments of `EmbeddingClient.embed` that say how items are read."""

    max_pixels: int | None
    truncate: bool
    allow_reference_text: bool


class EmbedOptions(ItemOptions, total=False):
    """The keyword arguments of `EmbeddingClient.embed`, except `instruction`."""

    dimensions: int | None


class EmbeddingClient:
    """A connection to a vlembed server; threads may share it. Close it, or use it in a `with` statement.

    Parameters
    ----------
    url
        grpc://host:port, grpcs://host:port, http://host:port or https://host:port.
    timeout_s
        Of one request; a call that is split makes several.
    concurrency
        The most requests in flight of one call.
    tls
        Certificates for grpcs:// and https://.
    headers
        Sent with every request, for example an authorization; over gRPC as metadata.
    transport
        Used instead of the one that `url` asks for.

    Raises
    ------
    InvalidInputError
        A wrong argument. No connection is made yet.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        concurrency: int = 4,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise InvalidInputError(f"timeout_s is {timeout_s!r}. Pass seconds above 0, up to {MAX_TIMEOUT_S} (a day).")
        if not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidInputError(f"concurrency is {concurrency!r}. Pass a whole number, 1 or more.")
        self._url = url
        self._timeout_s = timeout_s
        self._transport = transport or open_transport(url, tls=tls, headers=headers)
        self._concurrency = concurrency
        self._info: ServerInfo | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests in flight may fail, and later ones raise `ConnectError`."""
        self._transport.close()

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server and its models are ready.

        Raises
        ------
        RequestTimeoutError
            They were not within `timeout_s`; it says what went wrong last.
        """
        deadline = time.monotonic() + timeout_s
        reason = "its models are not ready"
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                if self._transport.is_ready(min(left_s, PROBE_TIMEOUT_S)):
                    return
            except VlembedError as error:
                reason = str(error)
            time.sleep(PROBE_INTERVAL_S)
        raise RequestTimeoutError(f"{self._url} was not ready within {timeout_s} s: {reason}")

    def info(self) -> ServerInfo:
        """Return what the server says of itself; it is asked once."""
        if self._info is None:
            answer = self._transport.infer("info", {}, ("info",), self._timeout_s)["info"]
            if answer.dtype != np.object_ or answer.shape != (1,):
                raise ProtocolError(
                    f"info of {self._url} is {answer.dtype} {answer.shape} instead of one string. "
                    "Is it a vlembed server?"
                )
            self._info = ServerInfo.from_json(answer[0])
        return self._info

    def embed(
        self,
        items: ItemLike | Iterable[ItemLike],
        *,
        instruction: str | None = None,
        dimensions: int | None = None,
        max_pixels: int | None = None,
        truncate: bool = False,
        allow_reference_text: bool = False,
    ) -> Embeddings:
        """Embed one item or several; row i is item i.

        Parameters
        ----------
        items
            n items, or one: a str, the Path or bytes of an encoded image, a PIL image, a numpy array uint8
            (H, W, 3 or 4), or an `Item`. All are read before the first request.
        instruction
            The task, for items without one of their own; the model's default if None or blank.
        dimensions
            d, a Matryoshka size from the server's `min_dimensions` to its `dimensions`, the default.
        max_pixels
            Scale images down to this many pixels, within the server's bound.
        truncate
            Cut texts over the server's `max_tokens` instead of refusing them; `text_tokens` tells what was left.
        allow_reference_text
            Embed a text that is a URL, a data: URI or the path of an image as a string, which is refused otherwise.

        Returns
        -------
        Embeddings
            Rows (n, d).

        Raises
        ------
        InvalidInputError
            Listing every bad item, or naming a bad option. What the client can see is refused before anything is sent.
        VlembedError
            Of another kind, if the server cannot be reached or fails.
        """
        prepared = prepare(as_sequence(items), instruction=instruction, allow_reference_text=allow_reference_text)
        info = self.info()
        check_bounds(prepared, info.bounds)
        low, high = info.bounds["min_pixels"], info.bounds["max_pixels"]
        if not isinstance(truncate, bool):
            raise InvalidInputError(f"truncate is {truncate!r}. Pass True or False.")
        options = {
            **_option("dimensions", dimensions, info.min_dimensions, info.dimensions),
            **_option("max_pixels", max_pixels, low, high),
            **({"truncate": np.array([True])} if truncate else {}),
        }
        size = dimensions or info.dimensions
        call = Call(self._transport, self._timeout_s, prepared, options, size, info.fingerprint)
        outcomes = self._send(call, list(split(prepared, info.bounds, max_pixels)))
        if bad_items := [outcome for outcome in outcomes if isinstance(outcome, ItemError)]:
            raise InvalidInputError.of_items(bad_items, len(prepared))
        none = Embeddings(np.empty((0, size), np.float32), NO_TOKENS, NO_TOKENS, info.fingerprint)
        return concatenate([none, *(outcome for outcome in outcomes if isinstance(outcome, Embeddings))])

    def embed_query(
        self,
        items: ItemLike | Iterable[ItemLike],
        instruction: str = DEFAULT_QUERY_INSTRUCTION,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """Embed what is searched with; `instruction` says what is to be found. The options are those of `embed`."""
        return self.embed(items, instruction=instruction, **options)

    def embed_document(self, items: ItemLike | Iterable[ItemLike], **options: Unpack[EmbedOptions]) -> Embeddings:
        """Embed what is searched, under the model's default instruction. The options are those of `embed`."""
        return self.embed(items, **options)

    def similarity(
        self,
        a: ItemLike | Iterable[ItemLike] | Embeddings,
        b: ItemLike | Iterable[ItemLike] | Embeddings,
        *,
        metric: Metric = "cosine",
        pairwise: bool = False,
        instruction: str | None = None,
        **options: Unpack[EmbedOptions],
    ) -> npt.NDArray[Any]:
        """Compare items, vectors or `Embeddings`, in any mix, as the function `similarity` does.

        Parameters
        ----------
        a, b
            Items as for `embed`; `Embeddings` and numpy arrays (n, d) or (d,) are vectors and taken as they are.
        metric, pairwise
            As for the function `similarity`.
        instruction, **options
            As for `embed`, for the items of both.

        Returns
        -------
        numpy.ndarray
            Floats (n, m), or (n,) if pairwise; higher is more similar.

        Raises
        ------
        VlembedError
            As `embed` and the function `similarity` do.
        """

        def vectors(side: ItemLike | Iterable[ItemLike] | Embeddings) -> Embeddings | npt.NDArray[Any]:
            if isinstance(side, Embeddings) or (isinstance(side, np.ndarray) and side.ndim < 3):
                return side
            return self.embed(side, instruction=instruction, **options)

        return similarity(vectors(a), vectors(b), metric=metric, pairwise=pairwise)

    def _send(self, call: Call, packs: Sequence[range]) -> list[Outcome]:
        if len(packs) < 2:
            return [outcome for pack in packs for outcome in call.send(pack)]
        with ThreadPoolExecutor(min(self._concurrency, len(packs)), thread_name_prefix="vlembed") as pool:
            return [outcome for outcomes in pool.map(call.send, packs) for outcome in outcomes]


def _option(name: str, value: int | None, low: int, high: int) -> dict[str, npt.NDArray[Any]]:
    """Return the tensor of an option, or none if it is not given."""
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InvalidInputError(f"{name} is {value!r}; this server takes {low} to {high}. Leave it out for {high}.")
    return {name: np.array([value], np.int32)}
