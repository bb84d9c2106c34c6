"""How many requests may be in flight: found by trying, by additive increase and multiplicative decrease.

Knows neither requests nor servers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._exceptions import ConnectError, OverloadedError


class AdaptiveLimit:
    """At most `most` at a time: half as many and a pause after an overload, one more after each round that went well.

    Parameters
    ----------
    most
        The limit to begin with, which is never exceeded.
    backoff_s
        The pause, s, after so many rounds in a row that met an overload.
    """

    def __init__(self, most: int, backoff_s: Callable[[int], float]) -> None:
        self._most = most
        self._backoff_s = backoff_s
        self._limit = float(most)
        self._num_in_flight = 0
        self._num_overloads = 0  # rounds in a row
        self._halved_at = 0.0  # this and the next by time.monotonic
        self._paused_until = 0.0
        self._is_stopped = False
        self._changed = threading.Condition()

    @property
    def current(self) -> int:
        """The limit now."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until one more may be in flight; what the block raises tells how it went.

        Raises
        ------
        ConnectError
            The limit was stopped.
        """
        began_at = self._enter()
        try:
            yield
        except OverloadedError:
            with self._changed:
                if began_at > self._halved_at:  # else it was sent under the old limit
                    self._num_overloads += 1
                    self._limit = max(1.0, self._limit / 2)
                    self._halved_at = time.monotonic()
                    self._paused_until = self._halved_at + self._backoff_s(self._num_overloads)
            raise
        else:
            with self._changed:
                self._num_overloads = 0
                self._limit = min(self._most, self._limit + 1 / self._limit)
        finally:
            with self._changed:
                self._num_in_flight -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _enter(self) -> float:
        with self._changed:
            while not self._is_stopped:
                now = time.monotonic()
                if now >= self._paused_until and self._num_in_flight < self.current:
                    self._num_in_flight += 1
                    return now
                self._changed.wait(self._paused_until - now if now < self._paused_until else None)
        raise ConnectError("the stream or its client is closed. Make a new one.")
