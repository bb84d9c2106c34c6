"""What the launcher says and keeps, without a server."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys

import pytest

from server.belongings import keep_belongings
from server.events import EventLog
from tests.server.processes import DEADLINE_S, ROOT


def test_belongings_of_the_living_stay() -> None:
    with keep_belongings() as ours:
        ours.folder.mkdir()
        with keep_belongings() as others:
            assert ours.folder.exists()
            assert ours.name != others.name
    assert not ours.folder.exists()


def test_an_error_for_machines() -> None:
    command = [sys.executable, "-m", "server", "--repository=nowhere", "--health-port=0", "--log-format=json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    error = json.loads(ended.stderr)
    assert (ended.returncode, error["event"], error["level"]) == (2, "error", "error")
    assert error["message"].startswith("the model repository nowhere does not exist.")


def test_levels_of_other_lines() -> None:
    stream = io.StringIO()
    log = EventLog(stream, as_json=True)
    for line in ("I1201 ready\n", "W1201 hm\n", "E1201 no\n", "warning: careful\n", "Signal (15) received.\n", "\n"):
        log.write(line)
    levels = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert levels == ["info", "warning", "error", "warning", "info"]


def test_a_log_that_nobody_reads() -> None:
    stream = io.StringIO()
    stream.close()
    EventLog(stream).event("start")


def test_a_health_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "server", "--repository=nowhere", f"--health-port={port}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: port {port} of 127\.0\.0\.1 cannot be used .* --health-port\.\n", ended.stderr)


@pytest.mark.parametrize("delay", ["-1", "nan", "inf", "soon"])
def test_delays_are_seconds(delay: str) -> None:
    command = [sys.executable, "-m", "server", "--repository=nowhere", f"--drain-delay={delay}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 2
    assert "argument --drain-delay" in ended.stderr
