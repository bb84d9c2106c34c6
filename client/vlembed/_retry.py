"""Requests that are sent again: when, how often and after what pause.

Knows nothing of servers or items: it wraps a transport, and is one.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ._checks import number, seconds, whole_number
from ._exceptions import ConnectError, OverloadedError, RequestTimeoutError, VlembedError
from ._transport import Tensors, Transport, closed

RETRIED = (ConnectError, OverloadedError)  # a request that timed out may still be running: again would be more load


@dataclass(frozen=True)
class Retry:
    """When a request is sent again: if the connection failed or the server takes no more, and for nothing else.

    Embedding changes nothing on the server, so a request that was lost half way can safely be sent twice. The
    n-th pause is a random time up to `initial_backoff_s` x 2^(n-1) and `max_backoff_s` ("full jitter", Brooker, 2015).

    Raises
    ------
    InvalidInputError
        A value is out of its range.
    """

    max_attempts: int = 5  # of a request, the first included; 1 sends nothing again
    initial_backoff_s: float = 0.2
    max_backoff_s: float = 10.0
    budget: float = 0.2  # retries for each request of the client, so that many clients do not keep a server down
    reserve: int = 20  # retries on top: what a client may spend at once

    def __post_init__(self) -> None:
        whole_number("Retry.max_attempts", self.max_attempts, 1)
        seconds("Retry.initial_backoff_s", self.initial_backoff_s, may_be_zero=True)
        seconds("Retry.max_backoff_s", self.max_backoff_s, may_be_zero=True)
        number("Retry.budget", self.budget, 0, 1)
        whole_number("Retry.reserve", self.reserve, 0)

    def backoff_s(self, num_failures: int) -> float:
        """Return a random pause after so many failures in a row."""
        most_s: float = min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** min(num_failures - 1, 64))
        return random.uniform(0, most_s)


class Budget:
    """Retries that are left: each request adds a part of one, up to the reserve."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._left = float(retry.reserve)
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Count a request."""
        with self._lock:
            self._left = min(self._left + self._retry.budget, max(self._retry.reserve, 1))

    def withdraw(self) -> bool:
        """Take a retry, if one is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class RetryTransport:
    """Send requests again through another transport.

    `timeout_s` of `infer` is for all attempts and pauses together, and may be infinite; one attempt has at most
    `attempt_timeout_s`.
    """

    def __init__(
        self,
        transport: Transport,
        retry: Retry,
        attempt_timeout_s: float,
        *,
        budget: Budget | None = None,
        retried: tuple[type[VlembedError], ...] = RETRIED,
    ) -> None:
        self._transport = transport
        self.retry = retry
        self._attempt_timeout_s = attempt_timeout_s
        self._budget = budget or Budget(retry)
        self._retried = retried
        self._stopped = threading.Event()

    def on_connect_errors_only(self) -> RetryTransport:
        """Return one with the same budget that leaves it to the caller what to do at an overload."""
        return RetryTransport(
            self._transport, self.retry, self._attempt_timeout_s, budget=self._budget, retried=(ConnectError,)
        )

    def infer(
        self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, npt.NDArray[Any]]:
        """See `Transport`."""
        deadline = time.monotonic() + timeout_s
        self._budget.deposit()
        num_attempts = 0
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RequestTimeoutError("no time was left to send a request. Pass a longer total_timeout_s.")
            if self._stopped.is_set():
                raise closed()
            try:
                return self._transport.infer(model, inputs, outputs, min(left_s, self._attempt_timeout_s))
            except self._retried:
                num_attempts += 1
                if not self._may_retry(num_attempts, deadline):
                    raise

    def is_ready(self, timeout_s: float) -> bool:
        """See `Transport`; asked once."""
        return self._transport.is_ready(timeout_s)

    def stop(self) -> None:
        """Send nothing again from now on, and end every pause."""
        self._stopped.set()

    def close(self) -> None:
        """See `Transport`."""
        self.stop()
        self._transport.close()

    def _may_retry(self, num_attempts: int, deadline: float) -> bool:
        """Pause, and tell whether to send a request again after so many attempts."""
        if num_attempts >= self.retry.max_attempts:
            return False
        pause_s = self.retry.backoff_s(num_attempts)
        if time.monotonic() + pause_s >= deadline or not self._budget.withdraw():
            return False
        return not self._stopped.wait(pause_s)
