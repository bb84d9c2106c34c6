"""A tritonserver process on any model repository: started, watched, stopped, and nothing left behind.

Knows Triton; knows nothing of the models it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import IO, TextIO, cast
from uuid import uuid4

from .backend_folder import assemble
from .errors import ServerStartError
from .locate import ContainerServer, WheelServer, find_server
from .network import check_host, claim_ports
from .server_log import ServerLog
from .stack import large_stacks

EXIT_TIMEOUT_S = 30  # tritonserver waits this long for requests in flight, then leaves
KILL_AFTER_S = EXIT_TIMEOUT_S + 15  # of SIGTERM; unloading the models takes a moment, too
POLL_INTERVAL_S = 0.05
WATCH_INTERVAL_S = 1.0
HEALTH_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 128 << 20  # of an HTTP request, decompressed: 64 MiB of a client's pack, as base64 in JSON too
SHARED_MEMORY = Path("/dev/shm")
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says


class TritonProcess:
    """Serve a model repository while a `with` block lasts.

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
        log_stream: TextIO | None = None,
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

    def wait(self) -> str:
        """Wait until the server, or one of its Python processes, ends by itself; return which.

        tritonserver neither restarts such a process nor stops being ready: whoever serves should start anew.
        """
        while True:
            with suppress(subprocess.TimeoutExpired):
                return f"tritonserver ended with status {self._process.wait(WATCH_INTERVAL_S)}"
            if self._members - _group_members(self.pid):
                return "a Python process of tritonserver died"

    def __enter__(self) -> TritonProcess:
        """Start the server; return when all models are ready."""
        with ExitStack() as cleanup:  # undoes what was done if anything below fails
            self._start(cleanup)
            self._wait_until_ready()
            self._members = _group_members(self.pid)  # before anybody is told that it is ready
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
        region_prefix = f"vlembed_{uuid4().hex[:12]}_"
        environment = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}  # it would keep files in the user's folders
        if isinstance(server, WheelServer):
            environment |= wheel_environment(server)
        command = [str(server.executable), *self._flags(region_prefix)]
        if takes_flag(server.executable, "http-max-input-size", environment):  # since Triton 2.59
            command.append(f"--http-max-input-size={MAX_BODY_BYTES}")
        if isinstance(server, WheelServer):
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vlembed-backends-")))
            assemble(server, folder)
            command.append(f"--backend-directory={folder}")
        cleanup.callback(_remove_regions, region_prefix)
        with large_stacks() as shortage:
            if shortage is not None:
                print(f"warning: {shortage}", file=self.log_stream or sys.stderr, flush=True)
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
        self._log = ServerLog(cast(IO[str], self._process.stdout), self.log_stream)
        cleanup.callback(self._log.close)
        cleanup.callback(self._stop)

    def _flags(self, region_prefix: str) -> list[str]:
        flags: dict[str, object] = {
            "model-repository": self.repository,
            "model-control-mode": "none",
            "strict-readiness": "true",
            "exit-on-error": "true",
            "exit-timeout-secs": EXIT_TIMEOUT_S,
            "log-verbose": self.log_verbose,
            "backend-config": f"python,shm-region-prefix-name={region_prefix}",
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

    def _stop(self) -> None:
        """Let the requests in flight finish, then end every process of the group."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_AFTER_S)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what is left of it: normally nothing
        self._process.wait()


def takes_flag(executable: Path, flag: str, environment: Mapping[str, str]) -> bool:
    """Ask a tritonserver's own help whether it knows a flag."""
    asked = subprocess.run([executable, "--help"], capture_output=True, text=True, env=environment, check=False)
    return f"--{flag} " in asked.stdout + asked.stderr


def wheel_environment(server: WheelServer) -> dict[str, str]:
    """Return what the wheel's server needs to find its libraries and the Python of its models."""
    folders = [str(folder) for folder in server.library_folders]
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join([*folders, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }  # the stub takes its packages from the first python3 on PATH
    if not server.sees_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # so that KIND_AUTO means CPU
    return environment


def _group_members(group: int) -> set[int]:
    """Return the living processes of a process group."""
    members = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                members.add(int(path.parent.name))
    return members


def _remove_regions(prefix: str) -> None:
    for region in SHARED_MEMORY.glob(f"{prefix}*"):  # tritonserver removes its own, unless it was killed
        region.unlink(missing_ok=True)
