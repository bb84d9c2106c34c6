"""Several servers as one: load is spread over those that work, and all must serve the same model.

Knows nothing of items: it wraps transports, and is one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ._exceptions import ConnectError, OverloadedError, ProtocolError, RequestTimeoutError, ServerError, VlembedError
from ._info import ServerInfo
from ._transport import Tensors, Transport

FIRST_REST_S = 0.5  # how long a server is left alone after it failed, doubled each time it fails again
MAX_REST_S = 30.0
OVERLOAD_REST_S = 0.1  # and after it took no more, else the one that refuses at once would look the least busy
PROBE_TIMEOUT_S = 2.0
IDLE_S = 5.0  # who was not asked for so long may have been restarted unnoticed


@dataclass(eq=False)
class Server:
    """What is known of one server; its `FailoverTransport` changes it under a lock."""

    url: str
    transport: Transport
    num_in_flight: int = 0
    turn: int = 0  # when it was chosen last
    is_verified: bool = False  # has shown that it serves our model, since it failed last
    num_failures: int = 0  # in a row
    failed_at: float = 0.0  # this and the following by time.monotonic
    answered_at: float = 0.0
    rests_until: float = 0.0


class FailoverTransport:
    """Send each request to the least busy server that works, and to the next one if the connection fails.

    A server that failed rests for a while; then it is first asked whether it is ready and what it serves.

    Parameters
    ----------
    transports
        By URL, which messages name; at least one.
    """

    def __init__(self, transports: Mapping[str, Transport]) -> None:
        self._servers = [Server(url, transport) for url, transport in transports.items()]
        self._lock = threading.Lock()
        self._turns = itertools.count(1)
        self._model: tuple[str, str] | None = None  # URL and fingerprint of the first that answered

    def infer(
        self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, npt.NDArray[Any]]:
        """See `Transport`; the error is that of the last server that was tried."""
        deadline = time.monotonic() + timeout_s
        untried = list(self._servers)
        while True:
            try:
                with self._lend(untried) as server:
                    untried.remove(server)
                    if not server.is_verified:
                        verify = self._probe if untried or server.num_failures else self._verify
                        info = verify(server, deadline)
                        if model == "info":
                            return info
                    return server.transport.infer(model, inputs, outputs, _left_s(server, deadline))
            except ConnectError:
                if not untried:
                    raise

    def is_ready(self, timeout_s: float) -> bool:
        """Tell whether at least one server is ready; raise as the last one does if none answers."""
        deadline = time.monotonic() + timeout_s
        answers: list[bool] = []
        errors: list[VlembedError] = []
        for number, server in enumerate(self._servers):
            share_s = max(deadline - time.monotonic(), 0.001) / (len(self._servers) - number)
            try:
                answers.append(server.transport.is_ready(share_s))
            except VlembedError as error:
                errors.append(error)
            if any(answers):
                return True
        if not answers:
            raise errors[-1]
        return False

    def close(self) -> None:
        """See `Transport`."""
        for server in self._servers:
            server.transport.close()

    @contextmanager
    def _lend(self, servers: Sequence[Server]) -> Iterator[Server]:
        """Choose a server for one request, and learn from how it ends."""
        server, began_at = self._choose(servers), time.monotonic()
        try:
            yield server
        except (ConnectError, RequestTimeoutError):
            with self._lock:
                if began_at > server.failed_at:  # else another request has told already
                    server.is_verified = False
                    server.num_failures += 1
                    server.failed_at = time.monotonic()
                    rest_s = FIRST_REST_S * 2.0 ** min(server.num_failures - 1, 16)
                    server.rests_until = server.failed_at + min(MAX_REST_S, rest_s)
            raise
        except OverloadedError:
            with self._lock:
                server.rests_until = time.monotonic() + OVERLOAD_REST_S
            raise
        else:
            server.answered_at = time.monotonic()
        finally:
            with self._lock:
                server.num_in_flight -= 1

    def _choose(self, servers: Sequence[Server]) -> Server:
        """Take the least busy of those that do not rest, else the one whose rest ends first."""
        now = time.monotonic()
        with self._lock:
            awake = [server for server in servers if server.rests_until <= now]
            if awake:
                chosen = min(awake, key=lambda server: (server.num_in_flight, server.turn))
            else:
                chosen = min(servers, key=lambda server: server.rests_until)
            if chosen.num_failures:
                chosen.rests_until = now + PROBE_TIMEOUT_S  # one request finds out, the others use those that work
            elif not chosen.num_in_flight and now - chosen.answered_at > IDLE_S:
                chosen.is_verified = False
            chosen.num_in_flight += 1
            chosen.turn = next(self._turns)
        return chosen

    def _probe(self, server: Server, deadline: float) -> dict[str, npt.NDArray[Any]]:
        """Verify a server that may hang; if it does, the request has not been sent, so that another one can have it."""
        try:
            return self._verify(server, min(deadline, time.monotonic() + PROBE_TIMEOUT_S))
        except RequestTimeoutError as error:
            raise ConnectError(f"{server.url} hangs: it does not say whether it is ready. Restart it.") from error

    def _verify(self, server: Server, deadline: float) -> dict[str, npt.NDArray[Any]]:
        """Return the info of a server, after making sure that it is ready and serves our model."""
        if server.num_failures:
            with suppress(ServerError, ProtocolError):  # it answers, if not to this: its info decides
                if not server.transport.is_ready(_left_s(server, deadline)):
                    raise ConnectError(f"{server.url} answers, but its models are not ready. Try again later.")
        answer = server.transport.infer("info", {}, ("info",), _left_s(server, deadline))
        fingerprint = ServerInfo.from_tensor(answer["info"], server.url).fingerprint
        with self._lock:
            self._model = self._model or (server.url, fingerprint)
            url, expected = self._model
            if fingerprint == expected:
                server.is_verified, server.num_failures, server.rests_until = True, 0, 0.0
        if fingerprint != expected:
            raise ProtocolError(
                f"{server.url} serves the model {fingerprint}, but {url} served {expected}: their vectors cannot be "
                "compared. Serve one model at every URL, or make a new EmbeddingClient."
            )
        return answer


def _left_s(server: Server, deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise RequestTimeoutError(f"{server.url} gave no answer in time. Pass a longer timeout_s.")
    return left_s
