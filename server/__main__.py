"""The command: `python -m server --repository DIR`. One line on stdout says that it is ready; the log is on stderr."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from types import FrameType

from .events import EventLog
from .health import serve_health
from .launch import ServerStartError, TritonServer
from .paths import local_path
from .supervisor import ServerDiedError, Supervisor

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when the terminal goes


def main() -> int:
    """Serve until a signal; return 0 after a clean stop, 1 if the server died, 2 for a user's error."""
    options = vars(_parse())
    log = EventLog(sys.stderr, as_json=options.pop("log_format") == "json")
    health_port, restarts, drain_delay_s = (options.pop(name) for name in ("health_port", "restart", "drain_delay"))

    def make_server(ports: dict[str, int]) -> TritonServer:
        same_ports = {f"{endpoint}_port": port for endpoint, port in ports.items()}
        return TritonServer(**options | same_ports, log_stream=log)

    supervisor = Supervisor(make_server, log, restarts=restarts, drain_delay_s=drain_delay_s)
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _stop)
    try:
        with serve_health(options["host"], health_port, supervisor) as health_url:

            def tell(server: TritonServer) -> None:
                log.event("health", url=health_url)
                print(f"ready {server.http_url} {server.grpc_url}", flush=True)

            supervisor.run(tell)
    except ServerStartError as error:
        log.error(str(error))
        return 2
    except ServerDiedError as error:
        log.error(f"{error}; the log is above.")
        return 1
    except KeyboardInterrupt:
        log.event("stopped")
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)  # once is enough: the server finishes what it has begun
    raise KeyboardInterrupt


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is no time to wait. Pass seconds, from 0")
    return seconds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="server", description="Serve a model repository on NVIDIA Triton.")
    parser.add_argument("--repository", type=local_path, required=True, help="folder that `python -m export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to listen on")
    parser.add_argument("--http-port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free one")
    parser.add_argument("--metrics-port", type=int, default=8002, help="tritonserver's metrics; 0 takes a free one")
    parser.add_argument(
        "--health-port", type=int, default=8003, help="/health/live, /health/ready and /metrics; 0 takes a free one"
    )
    parser.add_argument(
        "--variant",
        "--model-config-name",
        dest="model_config_name",
        help="graphs and configs for one kind of hardware, as exported; default: cpu",
    )
    parser.add_argument(
        "--drain-delay",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="after a signal, go on serving for so long while /health/ready says 503; default: 0",
    )
    parser.add_argument(
        "--no-restart", dest="restart", action="store_false", help="end with status 1 when the server breaks"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of the log, on stderr")
    parser.add_argument("--log-verbose", type=int, default=0, help="Triton's level of detail")
    parser.add_argument(
        "--insecure-remote", action="store_true", help="let the wheel's server, with its known holes, face a network"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
