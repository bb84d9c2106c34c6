"""The launcher's own endpoint: may requests come here? For Kubernetes, load balancers and Prometheus.

Knows nothing of Triton: it tells what the supervisor knows, also while no server runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from .errors import ServerStartError
from .supervisor import READY, Supervisor

POLL_INTERVAL_S = 0.1  # until the end is noticed
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@contextmanager
def serve_health(host: str, port: int, supervisor: Supervisor) -> Iterator[str]:
    """Answer about a supervisor while a `with` block lasts.

    /health/live   200 as long as the launcher runs, which restarts what breaks
    /health/ready  200 if requests are served, else 503; the body says why
    /metrics       for Prometheus; tritonserver's own are at its metrics port

    Parameters
    ----------
    host, port
        IPv4 address and port to listen on; 0 takes a free one.
    supervisor
        Whom to ask.

    Yields
    ------
    str
        The URL, such as http://127.0.0.1:8003.

    Raises
    ------
    ServerStartError
        The port cannot be used.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a request to come

        def do_GET(self) -> None:
            if self.path == "/health/live":
                self._reply(200, "live\n")
            elif self.path == "/health/ready":
                state = supervisor.state
                self._reply(200 if state == READY else 503, f"{state}\n")
            elif self.path == "/metrics":
                self._reply(200, metrics(supervisor), METRICS_TYPE)
            else:
                self._reply(404, "There are /health/live, /health/ready and /metrics.\n")

        def _reply(self, status: int, text: str, content_type: str = "text/plain; charset=utf-8") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of every probe."""

    class Server(ThreadingTCPServer):  # http.server's own asks DNS for the host's name when it starts
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing of a client that has gone."""

    try:
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ServerStartError(
            f"port {port} of {host} cannot be used ({error}). Stop what listens there, or pass another --health-port."
        ) from None
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_INTERVAL_S,), name="health", daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def metrics(supervisor: Supervisor) -> str:
    """Return what Prometheus reads."""
    values = (
        ("vlembed_ready", "gauge", "1 if requests are served", int(supervisor.state == READY)),
        ("vlembed_starts_total", "counter", "Servers that became ready", supervisor.num_starts),
        ("vlembed_faults_total", "counter", "Servers that broke or did not start again", supervisor.num_faults),
        ("vlembed_canary_seconds", "gauge", "How long the last embedding of the canary took", supervisor.canary_s),
    )
    return "".join(
        f"# HELP {name} {meaning}.\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, meaning, value in values
    )
