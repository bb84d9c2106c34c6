"""The command: `python -m server --repository DIR`. One line on stdout says that it is ready; the log is on stderr."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from .launch import ServerStartError, TritonServer
from .paths import local_path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when the terminal goes


def main() -> int:
    """Serve until a signal; return 0 after a clean stop, 1 if the server died, 2 for a user's error."""
    arguments = _parse()
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _stop)
    try:
        with TritonServer(**vars(arguments), log_stream=sys.stderr) as server:
            print(f"ready {server.http_url} {server.grpc_url}", flush=True)
            reason = server.wait()
    except ServerStartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    print(f"error: {reason}; the log is above.", file=sys.stderr)
    return 1


def _stop(signum: int, frame: FrameType | None) -> None:
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)  # once is enough: the server finishes what it has begun
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="server", description="Serve a model repository on NVIDIA Triton.")
    parser.add_argument("--repository", type=local_path, required=True, help="folder that `python -m export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to listen on")
    parser.add_argument("--http-port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free one")
    parser.add_argument("--metrics-port", type=int, default=8002, help="0 takes a free one")
    parser.add_argument(
        "--variant",
        "--model-config-name",
        dest="model_config_name",
        help="graphs and configs for one kind of hardware, as exported; default: cpu",
    )
    parser.add_argument("--log-verbose", type=int, default=0, help="Triton's level of detail")
    parser.add_argument(
        "--insecure-remote", action="store_true", help="let the wheel's server, with its known holes, face a network"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
