"""A lock that many readers share and a writer has alone, and work that Ctrl-C does not cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class ReadWriteLock:
    """Readers wait while a writer works or waits, so that it gets its turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_readers = 0
        self._num_writers = 0  # at work or waiting
        self._is_writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            while self._num_writers:
                self._changed.wait()
            self._num_readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._num_writers += 1
            try:
                while self._num_readers or self._is_writing:
                    self._changed.wait()
            except BaseException:
                self._num_writers -= 1
                self._changed.notify_all()
                raise
            self._is_writing = True
        try:
            yield
        finally:
            with self._changed:
                self._is_writing = False
                self._num_writers -= 1
                self._changed.notify_all()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C off until the end; it interrupts the main thread alone."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])
