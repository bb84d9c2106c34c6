"""The client: items in, vectors out, by as many requests as the server's bounds ask for.

Knows neither formats nor protocols: `_items` reads what the caller passes, `_packing` splits it, a transport sends it.
"""

from __future__ import annotations

import math
import operator
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args, overload

import numpy.typing as npt

from ._checks import flag, instance, mapping, one_of, seconds, whole_number
from ._connect import as_urls, open_transports
from ._containers import is_vectors
from ._exceptions import InvalidInputError, ItemError, RequestTimeoutError, VlembedError
from ._failover import FailoverTransport
from ._fork import call_after_fork, keep
from ._info import ServerInfo
from ._items import ItemLike, PreparedItem, as_iterable, as_sequence, fit, fit_all, prepare, prepare_item
from ._packing import Pack, split
from ._progress import with_progress
from ._request import Call, Outcome
from ._result import EmbeddedItem, Embeddings, stack
from ._retry import Retry, RetryTransport
from ._similarity import Metric, similarity
from ._stream import Plan, Stream
from ._transport import TLS, Transport, closed

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

DEFAULT_QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."
PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 0.2


OnError = Literal["raise", "skip", "return"]


class ItemOptions(TypedDict, total=False):
    """The keyword arguments of `EmbeddingClient.embed` that say how items are read."""

    max_pixels: int | None
    truncate: bool
    allow_reference_text: bool


class EmbedOptions(ItemOptions, total=False):
    """The keyword arguments of `EmbeddingClient.embed`, except `instruction`."""

    dimensions: int | None


class StreamOptions(EmbedOptions, total=False):
    """The keyword arguments of `EmbeddingClient.embed_many`, except `on_error`."""

    instruction: str | None
    progress: bool


class EmbeddingClient:
    """A connection to vlembed servers; threads may share it. Close it, or use it in a `with` statement.

    Parameters
    ----------
    url
        grpc://host:port, grpcs://host:port, http://host:port or https://host:port; or several, in any mix, of servers
        of one model. Requests go to the least busy one; one that fails is left alone until it is ready again.
    timeout_s
        Of one request, each time that it is sent; a call that is split makes several.
    total_timeout_s
        Of one call with all its requests, retries and pauses; of `embed_many`, of each pack. None sets no bound.
    retry
        When a request is sent again.
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
        url: str | Sequence[str],
        *,
        timeout_s: float = 60.0,
        total_timeout_s: float | None = None,
        retry: Retry = Retry(),  # noqa: B008 - it is frozen
        concurrency: int = 4,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._total_timeout_s = None if total_timeout_s is None else seconds("total_timeout_s", total_timeout_s)
        self._concurrency = whole_number("concurrency", concurrency, 1)
        self._retry = instance("retry", retry, Retry)
        self._tls = None if tls is None else instance("tls", tls, TLS)
        self._headers = {} if headers is None else mapping("headers", headers)
        self._custom_transport = transport
        self._urls = as_urls(url) if transport is None else [str(url)]
        self._is_closed = False
        self._begin(self._connect())
        call_after_fork(self._after_fork)

    def __reduce__(self) -> tuple[Callable[[], EmbeddingClient], tuple[()]]:
        """Pickle and copy the settings; the new client makes connections of its own."""
        make = partial(
            type(self),
            self._urls,
            timeout_s=self._timeout_s,
            total_timeout_s=self._total_timeout_s,
            retry=self._retry,
            concurrency=self._concurrency,
            tls=self._tls,
            headers=self._headers,
            transport=self._custom_transport,
        )
        return make, ()

    def _after_fork(self) -> None:
        keep(self._open_transport)
        self._begin(None)

    def _begin(self, transport: RetryTransport | None) -> None:
        """Set what belongs to one process; a forked child connects when it needs to."""
        self._open_transport = transport
        self._opening = threading.Lock()
        self._info: ServerInfo | None = None
        self._streams: set[Stream] = set()

    def _connect(self) -> RetryTransport:
        if self._custom_transport is None:
            transports = open_transports(self._urls, tls=self._tls, headers=self._headers)
        else:
            transports = {self._urls[0]: self._custom_transport}
        return RetryTransport(FailoverTransport(transports), self._retry, self._timeout_s)

    @property
    def _transport(self) -> RetryTransport:
        """The connections of this process."""
        with self._opening:
            if self._is_closed:
                raise closed()
            if self._open_transport is None:
                self._open_transport = self._connect()
            return self._open_transport

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; requests in flight may fail, and later ones raise `ConnectError`."""
        for stream in tuple(self._streams):
            stream.stop()
        with self._opening:
            self._is_closed = True
        if self._open_transport is not None:
            self._open_transport.close()

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server and its models are ready; of several servers, one.

        Raises
        ------
        RequestTimeoutError
            They were not within `timeout_s`; it says what went wrong last.
        """
        deadline = time.monotonic() + seconds("timeout_s", timeout_s)
        reason = "its models are not ready"
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                if self._transport.is_ready(min(left_s, PROBE_TIMEOUT_S)):
                    return
            except VlembedError as error:
                reason = str(error)
            time.sleep(PROBE_INTERVAL_S)
        raise RequestTimeoutError(f"{' or '.join(self._urls)} was not ready within {timeout_s} s: {reason}")

    def info(self) -> ServerInfo:
        """Return what the server says of itself; it is asked once."""
        return self._info_before(self._deadline())

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
            (H, W, 3 or 4), or an `Item`. Several are any iterable, a numpy array (n,) of strings, or a column of
            pandas, polars or pyarrow; tables, mappings and sets are refused. All are read before the first request.
        instruction
            The task, for items without one of their own; the model's default if None or blank.
        dimensions
            d, a Matryoshka size from the server's `min_dimensions` to its `dimensions`, the default.
        max_pixels
            Scale images down to this many pixels, within the server's bound.
        truncate
            Cut texts over the server's `max_text_bytes` and `max_tokens` instead of refusing them; `text_tokens` tells
            what was left.
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
        flag("allow_reference_text", allow_reference_text)
        deadline = self._deadline()
        prepared = prepare(as_sequence(items), instruction=instruction, allow_reference_text=allow_reference_text)
        info = self._info_before(deadline)
        call = Call.of(self._transport, info, dimensions=dimensions, max_pixels=max_pixels, truncate=truncate)
        prepared = fit_all(prepared, info.bounds, truncate=truncate)
        outcomes = self._send(call, list(split(prepared, info.bounds, max_pixels)), deadline)
        if bad_items := [outcome for outcome in outcomes if isinstance(outcome, ItemError)]:
            raise InvalidInputError.of_items(bad_items, len(prepared))
        rows = [outcome for outcome in outcomes if isinstance(outcome, EmbeddedItem)]
        return stack(rows, call.dimensions, info.fingerprint)

    @overload
    def embed_many(
        self,
        items: Iterable[ItemLike],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> Generator[EmbeddedItem, None, None]: ...

    @overload
    def embed_many(
        self, items: Iterable[ItemLike], *, on_error: Literal["return"], **options: Unpack[StreamOptions]
    ) -> Generator[EmbeddedItem | ItemError, None, None]: ...

    def embed_many(
        self,
        items: Iterable[ItemLike],
        *,
        on_error: OnError = "raise",
        progress: bool = False,
        instruction: str | None = None,
        dimensions: int | None = None,
        max_pixels: int | None = None,
        truncate: bool = False,
        allow_reference_text: bool = False,
    ) -> Generator[EmbeddedItem | ItemError, None, None]:
        """Embed a stream of any length, and yield its rows in order as they come.

        Items are read as far ahead as the requests in flight need, some hundreds, and sent in packs of even cost.
        When the server takes no more, fewer requests are in flight. Closing the generator ends it.

        Parameters
        ----------
        items
            Any iterable of items as for `embed`, an endless one too; read in the caller's thread.
        on_error
            What becomes of an item that cannot be embedded: "raise" an `InvalidInputError` in its place, "skip" it, or
            "return" an `ItemError` in its place.
        progress
            Show items/s, tokens/s, errors and the time left on stderr; needs the extra bulk.
        instruction, dimensions, max_pixels, truncate, allow_reference_text
            As for `embed`.

        Yields
        ------
        EmbeddedItem or ItemError
            Its `index` is that of the item in the iterable, from 0.

        Raises
        ------
        InvalidInputError
            A wrong option; or a bad item, if on_error is "raise".
        MissingExtraError
            progress is asked for, and tqdm is not installed.
        VlembedError
            Of another kind, whatever on_error is, if no server can be reached or one fails; what `items` raises comes
            out as it is. What was yielded before is whole.
        """
        one_of("on_error", on_error, get_args(OnError))
        flag("allow_reference_text", allow_reference_text)
        flag("progress", progress)
        items = as_iterable(items)

        def prepare_one(item: ItemLike) -> PreparedItem:
            return fit(prepare_item(item, instruction, allow_reference_text), bounds, truncate=truncate)

        info = self.info()
        bounds = info.bounds
        transport = self._transport.on_connect_errors_only()
        plan = Plan(
            call=Call.of(transport, info, dimensions=dimensions, max_pixels=max_pixels, truncate=truncate),
            transport=transport,
            prepare=prepare_one,
            bounds=bounds,
            max_pixels=max_pixels,
            concurrency=self._concurrency,
            total_timeout_s=self._total_timeout_s,
            ends_at_error=on_error == "raise",
        )
        stream = Stream(plan, items)
        outcomes = stream.outcomes()
        if progress:
            outcomes = with_progress(outcomes, operator.length_hint(items) or None)
        return self._follow(stream, outcomes, on_error)

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
            if isinstance(side, Embeddings) or is_vectors(side):
                return side
            return self.embed(side, instruction=instruction, **options)

        return similarity(vectors(a), vectors(b), metric=metric, pairwise=pairwise)

    def _deadline(self) -> float:
        return time.monotonic() + (self._total_timeout_s or math.inf)

    def _info_before(self, deadline: float) -> ServerInfo:
        if self._info is None:
            answer = self._transport.infer("info", {}, ("info",), deadline - time.monotonic())
            self._info = ServerInfo.from_tensor(answer["info"], " or ".join(self._urls))
        return self._info

    def _send(self, call: Call, packs: Sequence[Pack], deadline: float) -> list[Outcome]:
        if len(packs) < 2:
            return [outcome for pack in packs for outcome in call.send(pack, deadline)]
        with ThreadPoolExecutor(min(self._concurrency, len(packs)), thread_name_prefix="vlembed") as pool:
            sent = pool.map(lambda pack: call.send(pack, deadline), packs)
            return [outcome for outcomes in sent for outcome in outcomes]

    def _follow(
        self, stream: Stream, outcomes: Generator[Outcome, None, None], on_error: OnError
    ) -> Generator[Outcome, None, None]:
        """Yield what a stream does, with its errors as asked for; `close` stops it meanwhile."""
        self._streams.add(stream)
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    if isinstance(outcome, EmbeddedItem) or on_error == "return":
                        yield outcome
                    elif on_error == "raise":
                        raise InvalidInputError(f"item {outcome.index}: {outcome.message}", [outcome])
        finally:
            self._streams.discard(stream)
