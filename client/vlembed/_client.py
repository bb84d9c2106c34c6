"""The client: items in, vectors out, in the same order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ._exceptions import ConnectError, InvalidInputError, ItemError, ProtocolError, RequestTimeoutError
from ._items import WireItem, is_single, to_wire
from ._packing import packs
from ._result import Embeddings, ServerInfo
from ._similarity import Metric, similarity
from ._transport import TLS, Transport, connect

QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."  # of the model's own examples
OUTPUTS = ("embedding", "text_tokens", "image_tokens")
POLL_INTERVAL_S = 0.2

Tensors = dict[str, npt.NDArray[Any]]
Row = tuple[Any, ...]  # of one item, one entry for each of OUTPUTS


class EmbeddingClient:
    """A connection to a vlembed server. Threads may share it.

    Parameters
    ----------
    url
        grpc://host:port, or http://host:port; grpcs:// and https:// with TLS.
    timeout_s
        How long to wait for the answer to one request.
    concurrency
        Requests in flight at most.
    tls
        Certificates, where the system's own do not do.
    headers
        Sent with every request, such as {"authorization": "Bearer ..."}.
    transport
        Takes the place of the one that `url` asks for.

    Raises
    ------
    InvalidInputError
        The URL is none of these.
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
        self._transport = transport or connect(url, timeout_s=timeout_s, tls=tls, headers=headers or {})
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="vlembed")
        self._info: ServerInfo | None = None
        self._closed = False

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is in flight and give back the connections."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)
        self._transport.close()

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the server serves.

        Raises
        ------
        RequestTimeoutError
            It did not within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not self._transport.is_ready():
            if time.monotonic() > deadline:
                raise RequestTimeoutError(f"the server was not ready within {timeout_s:g} s. Is it running?")
            time.sleep(POLL_INTERVAL_S)

    def info(self) -> ServerInfo:
        """Return what is served; asked once."""
        if self._info is None:
            answer = self._transport.infer("info", {}, ("info",))["info"]
            try:
                self._info = ServerInfo(**json.loads(answer[0]))
            except (ValueError, TypeError) as error:
                raise ProtocolError(
                    f"the server's info cannot be read ({error}). Do client and server match?"
                ) from error
        return self._info

    def embed(
        self,
        items: Any,
        *,
        instruction: str | None = None,
        dimensions: int | None = None,
        max_pixels: int | None = None,
        truncate: bool = False,
        allow_reference_text: bool = False,
    ) -> Embeddings:
        """Embed one item or many, in as many requests as the server's bounds ask for.

        Parameters
        ----------
        items
            str (a text), pathlib.Path (an image file), bytes (the content of one), a PIL image, a numpy.ndarray of uint8
            (H, W, 3), or `Item` for text with an image; one of them, or a sequence of any mix.
        instruction
            What the vectors are for, as a sentence; the model's own default if left out.
        dimensions
            Matryoshka size; whole vectors if left out.
        max_pixels
            Larger images are scaled down to this; the server's own bound if left out.
        truncate
            Cut over-long texts instead of refusing them; `text_tokens` tells what was left.
        allow_reference_text
            Embed texts that are a URL, a data: URI or the path of an image, as the letters they are.

        Raises
        ------
        InvalidInputError
            Items that cannot be embedded, all of them listed with their index in `items`.
        ConnectError, RequestTimeoutError, OverloadedError, ServerError, ProtocolError
            See `VlembedError`.
        """
        sequence = [items] if is_single(items) else _as_sequence(items)
        wire = to_wire(sequence, instruction, allow_reference_text=allow_reference_text)
        info = self.info()
        values = {"dimensions": (dimensions, np.int32), "max_pixels": (max_pixels, np.int32)}
        options: Tensors = {
            name: np.array([value], kind) for name, (value, kind) in values.items() if value is not None
        }
        if truncate:
            options["truncate"] = np.array([True])
        if not wire:
            empty = np.zeros(0, np.int32)
            return Embeddings(np.zeros((0, dimensions or info.dimensions), np.float32), empty, empty, info.fingerprint)
        return self._embed(wire, options, info, max_pixels)

    def embed_query(self, items: Any, *, instruction: str = QUERY_INSTRUCTION, **options: Any) -> Embeddings:
        """Embed what is searched with; `options` are those of `embed`."""
        return self.embed(items, instruction=instruction, **options)

    def embed_document(self, items: Any, **options: Any) -> Embeddings:
        """Embed what is searched in, under the default instruction; `options` are those of `embed`."""
        return self.embed(items, **options)

    def similarity(
        self, a: Any, b: Any, *, metric: Metric = "cosine", pairwise: bool = False, **options: Any
    ) -> npt.NDArray[np.float32]:
        """Compare vectors or items, each of `a` with each of `b`; see `vlembed.similarity`.

        Embeddings and arrays of floats are taken as they are; anything else is embedded first, with `options` of `embed`.
        """
        left, right = (side if _are_vectors(side) else self.embed(side, **options) for side in (a, b))
        return similarity(left, right, metric=metric, pairwise=pairwise)

    def _embed(
        self, wire: Sequence[WireItem], options: Tensors, info: ServerInfo, max_pixels: int | None
    ) -> Embeddings:
        if self._closed:
            raise ConnectError("the client is closed. Make a new one.")
        futures = [self._pool.submit(self._send, wire, pack, options) for pack in packs(wire, info.bounds, max_pixels)]
        rows: dict[int, Row] = {}
        bad: list[ItemError] = []
        try:
            for future in futures:
                own_rows, own_bad = future.result()
                rows |= own_rows
                bad += own_bad
        finally:
            for future in futures:  # after an error the others are not begun
                future.cancel()
        if bad:
            raise InvalidInputError.of_items(bad, len(wire))
        embedding, text_tokens, image_tokens = zip(*(rows[index] for index in range(len(wire))), strict=True)
        return Embeddings(
            np.stack(embedding), np.array(text_tokens, np.int32), np.array(image_tokens, np.int32), info.fingerprint
        )

    def _send(
        self, wire: Sequence[WireItem], pack: list[int], options: Tensors
    ) -> tuple[dict[int, Row], list[ItemError]]:
        """Send the items of a pack and return their rows, or what is wrong with them, by their index in the whole."""
        items = [wire[index] for index in pack]
        inputs = {"text": _bytes_tensor([item.text for item in items]), **options}
        if any(item.instruction for item in items):
            inputs["instruction"] = _bytes_tensor([item.instruction for item in items])
        model = "embed_text"
        if any(item.image for item in items):
            model = "embed"
            inputs["image"] = _bytes_tensor([item.image for item in items])
        try:
            answer = self._transport.infer(model, inputs, OUTPUTS)
        except InvalidInputError as error:
            if error.code == "PACK_TOO_LARGE":  # the plan was an estimate
                return self._send_halves(wire, pack, options, error)
            if not error.items:
                raise
            return {}, [ItemError(pack[item.index], item.code, item.message) for item in error.items]
        if any(len(answer[name]) != len(pack) for name in OUTPUTS):
            raise ProtocolError(f"{len(pack)} items were sent, and the answer is of another length. Is this vlembed?")
        return dict(zip(pack, zip(*(answer[name] for name in OUTPUTS), strict=True), strict=True)), []

    def _send_halves(
        self, wire: Sequence[WireItem], pack: list[int], options: Tensors, error: InvalidInputError
    ) -> tuple[dict[int, Row], list[ItemError]]:
        if len(pack) == 1:
            return {}, [ItemError(pack[0], error.code, str(error))]
        middle = len(pack) // 2
        (rows, bad), (more_rows, more_bad) = (
            self._send(wire, half, options) for half in (pack[:middle], pack[middle:])
        )
        return rows | more_rows, bad + more_bad


def _as_sequence(items: Any) -> list[Any]:
    try:
        return list(items)
    except TypeError:
        return [items]  # to_wire says what is wrong with it


def _are_vectors(value: Any) -> bool:
    return isinstance(value, Embeddings) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")


def _bytes_tensor(values: list[bytes]) -> npt.NDArray[np.object_]:
    tensor = np.empty(len(values), np.object_)
    tensor[:] = values
    return tensor
