"""The log of a running tritonserver: kept, relayed, and searched for the reason of a failure."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO

from .events import Writable

MAX_LINES = 10_000
MAX_FAILURE_LINES = 20
LOAD_FAILURE = re.compile(r"""failed to load '([^']+)' version \d+: (.*?)"?$""")
ERROR_LINE = re.compile(r"^(E\d{4} |error: )")
OLD_ONNXRUNTIME = re.compile(r"com\.microsoft::PagedAttention.* has input size \d+ not in range")
ONNXRUNTIME_CURE = (
    "The CUDA variant needs ONNX Runtime 1.29 or newer, and this server's is older. Use a newer container, or "
    "./scripts/install --gpu and the server of the wheel."
)
HARMLESS = "CudaDriverHelper"  # an E-line of every start without a GPU


class ServerLog:
    """Starts a server in a thread, and reads what it and its Python processes say there until the end.

    Parameters
    ----------
    start
        Starts it, and returns its output. The kernel ends a process with the thread that started it, if it was told to
        end it with its parent: this one lives as long as the server.
    relay
        Where to copy each line as it comes.
    """

    def __init__(self, start: Callable[[], IO[str]], relay: Writable | None = None) -> None:
        self._relay = relay
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._read, args=(start, started), daemon=True)
        self._thread.start()
        started.result()  # or its error

    def text(self) -> str:
        """Return the last 10,000 lines."""
        return "".join(self._lines)

    def close(self) -> None:
        """Wait for the end of the stream."""
        self._thread.join()

    def failure(self) -> str:
        """Return the lines that tell why the server failed: models that did not load, else errors, else the end."""
        return find_failure(self.text())

    def _read(self, start: Callable[[], IO[str]], started: Future[None]) -> None:
        try:
            stream = start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        with stream:
            for line in stream:
                self._lines.append(line)
                self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        if self._relay is None:
            return
        try:
            print(line, end="", file=self._relay, flush=True)
        except (OSError, ValueError):  # its reader has gone: the server must not stall for that
            self._relay = None


def find_failure(log: str) -> str:
    """Return the few lines of a log that tell why the server failed."""
    lines = log.splitlines()
    failures = {match[1]: _unescape(match[2]) for line in lines if (match := LOAD_FAILURE.search(line))}
    if failures:
        cure = [ONNXRUNTIME_CURE] if any(OLD_ONNXRUNTIME.search(reason) for reason in failures.values()) else []
        return "\n".join([*(f"{model}: {reason}" for model, reason in failures.items()), *cure])
    errors = [line for line in lines if ERROR_LINE.match(line) and HARMLESS not in line]
    return "\n".join((errors or lines)[-MAX_FAILURE_LINES:])


def _unescape(message: str) -> str:
    """Undo the log's escapes and cut off the Python stack."""
    plain = message.replace("\\n", "\n").replace('\\"', '"')
    return plain.split("\n\nAt:\n")[0].removeprefix("Internal: TritonModelException: ")
