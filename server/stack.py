"""Large stacks for tritonserver, which keeps parts of an HTTP request on the stacks of its threads.

The body of a form takes twice its size there, and curl sends JSON as a form unless told otherwise. Every chunk of a
body and every level of nested JSON takes stack, too. With the usual 8 MiB, a photograph of 3 MB ends the server.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

STACK_BYTES = 512 * 2**20  # of address space, per thread; memory is taken only as it is used


@contextmanager
def large_stacks() -> Iterator[str | None]:
    """Give processes that start within the `with` block stacks of 512 MiB, or of what the hard limit allows.

    Yields
    ------
    str or None
        A warning for the user if the hard limit is lower.
    """
    before = soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    allowed = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    # A thread gets 2 MiB where the limit is "unlimited".
    size = allowed if soft == resource.RLIM_INFINITY else max(soft, allowed)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    try:
        yield None if size >= STACK_BYTES else _shortage(size)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, before)


def _shortage(size: int) -> str:
    return (
        f"the hard limit of the stack is {size >> 10} KiB, and {STACK_BYTES >> 10} KiB are wanted: a request of more "
        f"than {size / 2.5e6:.1f} MB over HTTP can end the server. Raise the limit (ulimit -Hs), or send such "
        "requests over gRPC."
    )
