"""A lock that many readers share and a writer has alone, and work that no signal cuts short."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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


def to_the_end(work: Callable[[], T]) -> T:
    """Do work in a thread of its own and wait for it: what a signal raises, it raises here, and after the work."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
