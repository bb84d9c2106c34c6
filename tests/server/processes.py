"""Servers run as users run them, and what is left of them."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.errors import ServerStartError
from server.network import HTTP, claim_ports
from server.watch import group_members

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0  # generous: only a hang reaches it
ENDPOINTS = ("http", "grpc", "metrics", "health")


def leftovers() -> set[str]:
    """Return the shared memory regions and temporary folders of servers."""
    return {path.name for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob("vlembed_*")}


def child_of(parent: int) -> int:
    """Return the only child of a process."""
    (child,) = [
        child
        for thread in Path(f"/proc/{parent}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    return int(child)


def free_ports() -> dict[str, int]:
    """Return a free port for each endpoint of the command, below those that connections of clients begin at.

    A connection to a port that nobody listens at, as while a server is started again, may else be given that port.
    """
    while True:
        chosen = dict(zip(ENDPOINTS, random.sample(range(20_000, 32_000), len(ENDPOINTS)), strict=True))
        with suppress(ServerStartError):
            return claim_ports("127.0.0.1", chosen)


def get(url: str, body: bytes | None = None) -> tuple[int, str]:
    """Return the status and the body of an answer, to POST if there is something to send; 0 if nobody answers."""
    try:
        with HTTP.open(url, body, timeout=DEADLINE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


@contextmanager
def served_by_command(
    repository: Path, *arguments: str, ports: Mapping[str, int] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `python -m server` until it is ready; give the process and its line. It is stopped at the end."""
    command = [sys.executable, "-m", "server", "--repository", str(repository), *arguments]
    command += [f"--{endpoint}-port={(ports or {}).get(endpoint, 0)}" for endpoint in ENDPOINTS]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, line or _read(log)
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE_S)


def _read(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


@dataclass(frozen=True)
class Served:
    """A server that was started by command, at known ports."""

    process: subprocess.Popen[str]
    ports: Mapping[str, int]

    @property
    def tritonserver(self) -> int:
        """Return its process id."""
        return child_of(self.process.pid)

    def python_process(self, model: str) -> int:
        """Return the id of a process that runs a model's Python."""
        for pid in group_members(self.tritonserver):
            if f"/{model}/1/" in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        raise LookupError(model)

    def url(self, endpoint: str) -> str:
        """Return its URL."""
        return f"{'grpc' if endpoint == 'grpc' else 'http'}://127.0.0.1:{self.ports[endpoint]}"

    def get(self, path: str, endpoint: str = "health") -> tuple[int, str]:
        """Return the status and the body of an answer."""
        return get(self.url(endpoint) + path)

    def is_ready(self) -> bool:
        """Tell what a readiness probe would learn."""
        return self.get("/health/ready")[0] == 200

    def metric(self, name: str) -> float:
        """Return a value of the launcher's metrics."""
        (value,) = [line.split()[1] for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} ")]
        return float(value)


@contextmanager
def served(repository: Path, *arguments: str, ports: Mapping[str, int] | None = None) -> Iterator[Served]:
    """Run `python -m server` as `served_by_command` does, at ports that are known before."""
    ports = ports or free_ports()
    with served_by_command(repository, *arguments, ports=ports) as (process, line):
        assert line.startswith("ready "), line
        yield Served(process, ports)
