"""Ctrl-C and SIGTERM end a command with a sentence instead of a traceback. Imports nothing that takes time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the exit status of shells for SIGINT


@contextmanager
def interruptible(describe: Callable[[], str]) -> Iterator[None]:
    """End with exit status 130 when a signal interrupts the body, and print what `describe` says of its state."""
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses twice would get a traceback of the exit
        print(f"\ninterrupted: {describe()}", file=sys.stderr)  # below the line of a progress bar
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
