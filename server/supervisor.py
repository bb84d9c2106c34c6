"""Keep a server running: see that it lives and embeds, start it anew when it is broken, and drain it at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from .canary import Canary
from .errors import ServerStartError
from .events import EventLog
from .launch import TritonServer

MAX_CANARY_FAILURES = 3  # in a row; then the server is broken, though its processes live
CHECK_INTERVAL_S = 0.25  # of the canary; the end of a process is noticed at once
MAX_FAULTS = 5  # with less than STABLE_S of service between them
STABLE_S = 60.0
FIRST_PAUSE_S = 1.0  # after the second fault, doubled with each; after the first there is none
MAX_PAUSE_S = 30.0
READY = "ready"


class ServerDiedError(Exception):
    """The server broke, and will not be started again."""


class Supervisor:
    """Run one server after another until a signal.

    Parameters
    ----------
    make_server
        Returns a server to start, given the ports of the one before by endpoint, or nothing.
    log
        For a line of every start, stop and fault.
    restarts
        Whether a broken server is started again.
    drain_delay_s
        How long to go on serving after readiness has ended, so that those who send requests can learn of it.
    """

    def __init__(
        self,
        make_server: Callable[[dict[str, int]], TritonServer],
        log: EventLog,
        *,
        restarts: bool = True,
        drain_delay_s: float = 0.0,
    ) -> None:
        self._make_server = make_server
        self._log = log
        self._restarts = restarts
        self._drain_delay_s = drain_delay_s
        self._ports: dict[str, int] = {}
        self._phase = "starting"
        self._canary: Canary | None = None
        self._ready_at: float | None = None  # by time.monotonic
        self.num_faults = 0
        self.num_starts = 0

    @property
    def state(self) -> str:
        """Return `READY`, or why requests should go elsewhere."""
        return (self._canary and self._canary.failure) or self._phase

    @property
    def canary_s(self) -> float:
        """Return how many seconds the last embedding of the canary took."""
        return self._canary.seconds if self._canary else 0.0

    def run(self, on_ready: Callable[[TritonServer], None]) -> None:
        """Serve until KeyboardInterrupt, which passes through when the server has been drained and stopped.

        Parameters
        ----------
        on_ready
            Is called when the first server is ready.

        Raises
        ------
        ServerStartError
            The first server did not start.
        ServerDiedError
            A server broke and shall not be started again, or broke too often.
        """
        num_in_a_row = 0
        while True:
            fault = self._serve(on_ready)
            self.num_faults += 1
            was_stable = self._ready_at is not None and time.monotonic() - self._ready_at > STABLE_S
            num_in_a_row = 1 if was_stable else num_in_a_row + 1
            if not self._restarts or num_in_a_row >= MAX_FAULTS:
                raise ServerDiedError(fault)
            if num_in_a_row > 1:
                time.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (num_in_a_row - 2)))

    def _serve(self, on_ready: Callable[[TritonServer], None]) -> str:
        """Run a server until it breaks, end what is left of it, and return what broke."""
        began_at, self._ready_at, self._phase = time.monotonic(), None, "starting"
        try:
            with self._make_server(self._ports) as server, Canary(server.http_url) as self._canary:
                is_first, self._ports = not self._ports, server.ports
                self._ready_at, self._phase = time.monotonic(), READY
                self.num_starts += 1
                self._log.event(
                    "start",
                    seconds=round(self._ready_at - began_at, 2),
                    pid=server.pid,
                    http=server.http_url,
                    grpc=server.grpc_url,
                )
                if is_first:
                    on_ready(server)
                fault = self._wait(server)
                self._phase = "broken"
                server.kill()
        except ServerStartError as error:
            if not self._ports:
                raise
            fault = str(error)
        self._canary = None
        self._log.event("fault", level="error", reason=fault)
        return fault

    def _wait(self, server: TritonServer) -> str:
        """Return what broke, or let KeyboardInterrupt pass when nobody needs to come any more."""
        assert self._canary is not None
        try:
            while (fault := server.wait(CHECK_INTERVAL_S)) is None:
                if self._canary.num_failures >= MAX_CANARY_FAILURES:
                    return f"{self._canary.failure}, {MAX_CANARY_FAILURES} times in a row"
        except KeyboardInterrupt:
            self._phase = "stopping"
            self._log.event("stop", drain_delay_s=self._drain_delay_s)
            time.sleep(self._drain_delay_s)
            raise
        return fault
