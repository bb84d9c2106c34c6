"""Where a server may listen: addresses and ports, checked before it starts; and how it is asked over HTTP."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import AddressValueError, IPv4Address

from .errors import ServerStartError

HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says


def check_host(host: str, *, allow_remote: bool) -> None:
    """Refuse what is not an IPv4 address and, unless allowed, what others can reach.

    Raises
    ------
    ServerStartError
        The host is one of these.
    """
    try:
        address = IPv4Address(host)
    except AddressValueError:
        raise ServerStartError(f"--host {host!r} is not an IPv4 address. Pass one, such as 127.0.0.1.") from None
    if not (address.is_loopback or allow_remote):
        raise ServerStartError(
            f"--host {host} can be reached from other machines, and the wheel's tritonserver 2.51.0 has known "
            "vulnerabilities. Use 127.0.0.1, or a current Triton container; --insecure-remote insists."
        )


def claim_ports(host: str, ports: Mapping[str, int]) -> dict[str, int]:
    """Check that ports are free, and replace each 0 by one that is.

    Parameters
    ----------
    host
        IPv4 address to bind.
    ports
        By endpoint: http, grpc, metrics.

    Raises
    ------
    ServerStartError
        A port is taken; the message names it and its flag.
    """
    claimed = {}
    with ExitStack() as held:  # all at once, so that no two endpoints get the same
        for endpoint, port in ports.items():
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that has ended
            try:
                listener.bind((host, port))
                listener.listen()
            except (OSError, OverflowError) as error:
                raise ServerStartError(
                    f"port {port} of {host} cannot be used ({error}). Stop what listens there, or pass another "
                    f"--{endpoint}-port."
                ) from None
            claimed[endpoint] = listener.getsockname()[1]
    return claimed
