"""A tritonserver process on any model repository: started, watched, stopped, and nothing left behind.

Knows Triton; knows nothing of the models it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from .backend_folder import assemble
from .belongings import Belongings, keep_belongings
from .control import Control
from .errors import ServerStartError
from .events import Writable
from .locate import ContainerServer, WheelServer, find_server
from .network import HTTP, check_host, claim_ports
from .server_log import ServerLog
from .stack import large_stacks
from .watch import Watch, group_members

DRAIN_TIMEOUT_S = 30  # for requests in flight
EXIT_TIMEOUT_S = 5  # for tritonserver to end when there are none; idle connections would hold it for longer
POLL_INTERVAL_S = 0.05
HEALTH_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 128 << 20  # of an HTTP request, decompressed: 64 MiB of a client's pack, as base64 in JSON too
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")  # of util-linux; the Python processes end with tritonserver


class TritonProcess:
    """Serve a model repository while a `with` block lasts, and no longer than this process lives.

    Parameters
    ----------
    repository
        Folder of model folders.
    host
        IPv4 address to listen on.
    http_port, grpc_port, metrics_port
        0 takes a free one.
    model_config_name
        Variant of the configs to serve: `<model>/configs/<name>.pbtxt`, where a model has it.
    log_verbose
        Triton's level of detail, from 0.
    log_stream
        Where to copy the server's log as it comes.
    insecure_remote
        Let the wheel's server, which has known vulnerabilities, listen on more than loopback.
    start_timeout_s
        How long the models may take to load.

    Raises
    ------
    ServerStartError
        On entry: an argument is wrong, there is no server, or it cannot load the repository.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        model_config_name: str | None = None,
        log_verbose: int = 0,
        log_stream: Writable | None = None,
        insecure_remote: bool = False,
        start_timeout_s: float = 900.0,
    ) -> None:
        self.repository = repository
        self.host = host
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self.model_config_name = model_config_name
        self.log_verbose = log_verbose
        self.log_stream = log_stream
        self.insecure_remote = insecure_remote
        self.start_timeout_s = start_timeout_s

    @property
    def http_url(self) -> str:
        """URL of the HTTP endpoint, such as http://127.0.0.1:8000."""
        return f"http://{self._address}:{self.ports['http']}"

    @property
    def grpc_url(self) -> str:
        """URL of the gRPC endpoint, such as grpc://127.0.0.1:8001."""
        return f"grpc://{self._address}:{self.ports['grpc']}"

    @property
    def _address(self) -> str:
        return "127.0.0.1" if IPv4Address(self.host).is_unspecified else self.host

    @property
    def pid(self) -> int:
        """Process id of tritonserver, which leads a process group of its own."""
        return self._process.pid

    def log_text(self) -> str:
        """Return the last 10,000 lines of the server's log."""
        return self._log.text()

    def wait(self, timeout_s: float | None = None) -> str | None:
        """Wait until the server, or one of its Python processes, ends by itself; return which, or None if none did.

        tritonserver goes on without such a process, is ready, and fails what it gets: whoever serves should start anew.
        """
        ended = self._watch.ended(timeout_s)
        if not ended:
            return None
        if self.pid in ended:
            return f"tritonserver ended with status {self._process.wait()}"
        return f"a Python process of tritonserver died (pid {', '.join(map(str, sorted(ended)))})"

    def kill(self) -> None:
        """End the server and its Python processes at once, whatever they are doing."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while group_members(self.pid) and time.monotonic() < deadline:  # they hold its ports until they are gone
            time.sleep(POLL_INTERVAL_S)

    def __enter__(self) -> TritonProcess:
        """Start the server; return when all models are ready."""
        with ExitStack() as cleanup:  # undoes what was done if anything below fails
            self._start(cleanup)
            self._wait_until_ready()
            self._watch = Watch(group_members(self.pid))  # before anybody is told that it is ready
            cleanup.callback(self._watch.close)
            cleanup.callback(self._drain)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the server; requests in flight are finished first."""
        self._cleanup.close()

    def _start(self, cleanup: ExitStack) -> None:
        server = find_server()
        check_host(self.host, allow_remote=self.insecure_remote or isinstance(server, ContainerServer))
        self.ports = claim_ports(self.host, self.ports)
        self._control = Control()
        belongings = cleanup.enter_context(keep_belongings())
        command = [*END_WITH_PARENT, str(server.executable), *self._flags(belongings), *self._control.flags()]
        environment = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}  # it would keep files in the user's folders
        # The Python processes take their packages from the first python3 on PATH.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        if isinstance(server, WheelServer):
            belongings.folder.mkdir(mode=0o700)
            assemble(server, belongings.folder)
            command.append(f"--backend-directory={belongings.folder}")
            environment |= wheel_environment(server)
        if takes_flag(server.executable, "http-max-input-size", environment):  # since Triton 2.59
            command.append(f"--http-max-input-size={MAX_BODY_BYTES}")
        self._log = ServerLog(lambda: self._spawn(command, environment), self.log_stream)
        cleanup.callback(self._log.close)
        cleanup.callback(self._stop)

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> IO[str]:
        """Start tritonserver, and return its output."""
        with large_stacks() as shortage:
            if shortage is not None:
                self._warn(shortage)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,  # Ctrl-C must not reach it: its requests would not be finished
            )
        return cast(IO[str], self._process.stdout)

    def _flags(self, belongings: Belongings) -> list[str]:
        flags: dict[str, object] = {
            "model-repository": self.repository,
            "strict-readiness": "true",
            "exit-on-error": "true",
            "exit-timeout-secs": EXIT_TIMEOUT_S,
            "log-verbose": self.log_verbose,
            "backend-config": f"python,shm-region-prefix-name={belongings.region_prefix}",
        }
        for endpoint, port in self.ports.items():
            flags |= {f"{endpoint}-address": self.host, f"{endpoint}-port": port}
        if self.model_config_name is not None:
            flags["model-config-name"] = self.model_config_name
        return ["--disable-auto-complete-config", *(f"--{flag}={value}" for flag, value in flags.items())]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not self._is_ready():
            if (status := self._process.poll()) is not None:
                self._stop()  # its Python processes hold the log open
                self._log.close()
                raise ServerStartError(
                    f"tritonserver ended with status {status} while loading {self.repository}:\n{self._log.failure()}"
                )
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"tritonserver was not ready after {self.start_timeout_s:g} s. Raise start_timeout_s, or see "
                    f"its log:\n{self._log.failure()}"
                )
            time.sleep(POLL_INTERVAL_S)

    def _is_ready(self) -> bool:
        try:
            with HTTP.open(f"{self.http_url}/v2/health/ready", timeout=HEALTH_TIMEOUT_S):
                return True
        except urllib.error.HTTPError as error:  # not all models are loaded
            error.close()
        except OSError:  # nobody listens yet
            pass
        return False

    def _entrances(self) -> list[str]:
        """Return the models that clients call, which are closed before the server ends: here all of them."""
        return [config.parent.name for config in self.repository.glob("*/config.pbtxt")]

    def _drain(self) -> None:
        """Take no new requests, and let those in flight finish."""
        if self._process.poll() is None and not self._control.drain(self.http_url, self._entrances(), DRAIN_TIMEOUT_S):
            self._warn("the server is stopped before its requests in flight were finished.")

    def _stop(self) -> None:
        """End every process of the group."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)
        self.kill()

    def _warn(self, message: str) -> None:
        print(f"warning: {message}", file=self.log_stream or sys.stderr, flush=True)


def takes_flag(executable: Path, flag: str, environment: Mapping[str, str]) -> bool:
    """Ask a tritonserver's own help whether it knows a flag."""
    asked = subprocess.run([executable, "--help"], capture_output=True, text=True, env=environment, check=False)
    return f"--{flag} " in asked.stdout + asked.stderr


def wheel_environment(server: WheelServer) -> dict[str, str]:
    """Return what the wheel's server needs to find its libraries."""
    folders = [str(folder) for folder in server.library_folders]
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join([*folders, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    }
    if not server.sees_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # so that KIND_AUTO means CPU
    return environment
