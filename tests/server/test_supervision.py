"""Death, drain and health, on real servers: processes are killed, stopped under load and restarted in turn."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from server import canary, supervisor
from server.belongings import keep_belongings
from server.events import EventLog
from server.health import serve_health
from server.launch import TritonServer
from server.supervisor import MAX_FAULTS, ServerDiedError, Supervisor
from server.watch import group_members
from tests.client.faults import eventually
from tests.samples import encode, image
from tests.server.processes import (
    DEADLINE_S,
    ENDPOINTS,
    ROOT,
    Served,
    free_ports,
    get,
    leftovers,
    served,
)
from vlembed import EmbeddingClient, Retry

pytestmark = pytest.mark.triton

ONCE = Retry(max_attempts=1)
PICTURE = encode(image(160, 120, seed=1), "JPEG")


def changed(repository: Path, copy: Path, model: str, old: str, new: str) -> Path:
    """Copy a repository, and change a line of a Python model."""
    shutil.copytree(repository, copy)
    file = copy / model / "1/model.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return copy


def embed(server: Served, protocol: str = "grpc") -> None:
    with EmbeddingClient(server.url(protocol), retry=ONCE) as client:
        assert len(client.embed(["a", PICTURE])) == 2


# --- what breaks is started again ---


@pytest.mark.parametrize("victim", ["tritonserver", "preprocess", "language_model", "info"])
def test_a_server_that_lost_a_process_is_replaced(repository: Path, victim: str) -> None:
    with served(repository) as server:
        before = group_members(server.tritonserver)
        assert (server.is_ready(), server.metric("vlembed_faults_total")) == (True, 0)
        os.kill(server.tritonserver if victim == "tritonserver" else server.python_process(victim), signal.SIGKILL)
        eventually(lambda: not server.is_ready(), "a broken server is called ready")
        assert server.get("/health/live")[0] == 200
        eventually(server.is_ready, "no other server was started")
        embed(server)
        assert not set(before) & set(group_members(server.tritonserver))
        values = [server.metric(f"vlembed_{name}") for name in ("ready", "starts_total", "faults_total")]
        assert values == [1, 2, 1]
        assert server.process.poll() is None


@pytest.mark.parametrize("victim", ["tritonserver", "pooling"])
def test_without_restarts_the_command_ends(repository: Path, victim: str) -> None:
    before = leftovers()
    with served(repository, "--no-restart") as server:
        os.kill(server.tritonserver if victim == "tritonserver" else server.python_process(victim), signal.SIGKILL)
        assert server.process.wait(DEADLINE_S) == 1
    assert leftovers() <= before


def test_children_end_with_a_launcher_that_is_killed(repository: Path) -> None:
    before = leftovers()
    with served(repository) as server:
        members = group_members(server.tritonserver)
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(map(is_running, members)), "processes outlive the launcher")
        assert server.get("/v2/health/live", "http")[0] == 0
    assert leftovers() - before
    with keep_belongings():  # as the next server does when it starts
        pass
    assert leftovers() <= before


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_embeds_nonsense_is_broken(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes live and Triton is ready: only the canary can tell."""
    monkeypatch.setattr(canary, "INTERVAL_S", 0.05)
    broken = tmp_path / "broken"
    nonsense = f"(2 if __import__('pathlib').Path({str(broken)!r}).exists() else 1) * prefix"
    served_here = changed(
        repository, tmp_path / "repository", "pooling", '"embedding": prefix', f'"embedding": {nonsense}'
    )
    log = io.StringIO()
    running = Supervisor(lambda _: TritonServer(served_here), EventLog(log), restarts=False)
    states: list[tuple[int, str]] = []

    def break_it(server: TritonServer) -> None:
        states.append(get(f"{health_url}/health/ready"))
        broken.touch()
        eventually(lambda: running.state != "ready", "the canary noticed nothing")
        states.append(get(f"{health_url}/health/ready"))

    with serve_health("127.0.0.1", 0, running) as health_url:
        assert get(f"{health_url}/health/ready") == (503, "starting\n")
        with pytest.raises(ServerDiedError, match=r"a text was embedded with norm .*, 3 times in a row"):
            running.run(break_it)
    assert states[0] == (200, "ready\n")
    assert states[1][0] == 503
    assert "with norm" in states[1][1]
    assert re.search(r"Z start: seconds .*\n.*Z fault: reason a text was embedded with norm", log.getvalue())


def test_what_cannot_be_started_again_is_given_up(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    running = Supervisor(lambda _: TritonServer(copy), EventLog(io.StringIO()))

    def ruin(server: TritonServer) -> None:
        shutil.rmtree(copy / "pooling")
        server.kill()

    with pytest.raises(ServerDiedError, match="lacks the models pooling"):
        running.run(ruin)
    assert (running.num_faults, running.num_starts) == (MAX_FAULTS, 1)


# --- stops ---


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_requests_in_flight_are_finished_between_their_steps(repository: Path, tmp_path: Path, protocol: str) -> None:
    """Tritonserver itself refuses the next step of what an ensemble has begun."""
    begun = tmp_path / "begun"
    begun.mkdir()
    slow = (
        f"__import__('tempfile').mkstemp(dir={str(begun)!r}), __import__('time').sleep(0.5)\n"
        "        return [self._answer(request) for request in requests]"
    )
    slow_repository = changed(
        repository,
        tmp_path / "repository",
        "preprocess",
        "return [self._answer(request) for request in requests]",
        slow,
    )
    outcomes: Counter[str] = Counter()

    def work() -> None:
        try:
            client.embed(["a", PICTURE])
            outcomes["ok"] += 1
        except Exception as error:
            outcomes[repr(error)] += 1

    with served(slow_repository) as server, EmbeddingClient(server.url(protocol), retry=ONCE) as client:
        client.info()
        num_before = len(list(begun.iterdir()))  # the canary's
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(list(begun.iterdir())) - num_before + num_waiting(server) == 8, "not all have come")
        server.process.terminate()
        for thread in threads:
            thread.join()
        assert server.process.wait(DEADLINE_S) == 0
    assert outcomes == {"ok": 8}


def num_waiting(server: Served) -> int:
    """Return how many requests wait for `preprocess`."""
    pattern = r'^nv_inference_pending_request_count\{model="preprocess",.*\} (\d+)$'
    return sum(map(int, re.findall(pattern, server.get("/metrics", "metrics")[1], re.MULTILINE)))


@pytest.mark.xfail(
    strict=False,
    reason="seldom a call is lost when a server stops while the client still rests the other, which has just come back",
)
def test_a_rolling_restart_loses_no_call(repository: Path) -> None:
    """Two servers are stopped and started in turn while two clients, of both protocols, call both of them."""
    ports = [free_ports(), free_ports()]
    outcomes: Counter[str] = Counter()
    done = threading.Event()

    def work(client: EmbeddingClient, number: int) -> None:
        while not done.is_set():
            try:
                client.embed([PICTURE if number % 2 else "a"])
                outcomes["ok"] += 1
            except Exception as error:
                outcomes[repr(error)] += 1

    with ExitStack() as one, ExitStack() as other, ExitStack() as clients:
        pairs = [*zip((one, other), ports, strict=True)]
        servers = [stack.enter_context(served(repository, ports=its)) for stack, its in pairs]
        threads = []
        for protocol in ("grpc", "http"):
            client = clients.enter_context(EmbeddingClient([server.url(protocol) for server in servers]))
            threads += [threading.Thread(target=work, args=(client, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for stack, its in pairs:
                wait_for_calls(outcomes)
                stack.close()
                wait_for_calls(outcomes)
                stack.enter_context(served(repository, ports=its))
            wait_for_calls(outcomes)
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert set(outcomes) == {"ok"}


def wait_for_calls(outcomes: Counter[str]) -> None:
    wanted = outcomes.total() + 50
    eventually(lambda: outcomes.total() >= wanted, "no calls are answered")


def test_who_balances_load_can_learn_before_the_stop(repository: Path) -> None:
    with served(repository, "--drain-delay=3600") as server:
        assert (server.is_ready(), grpc_health(server)) == (True, SERVING)
        server.process.terminate()
        eventually(lambda: server.get("/health/ready") == (503, "stopping\n"), "it goes on being ready")
        embed(server)
        server.process.kill()


SERVING = b"\x08\x01"  # of grpc.health.v1.HealthCheckResponse


def grpc_health(server: Served) -> bytes:
    """Ask as Kubernetes' gRPC probe does."""
    with grpc.insecure_channel(server.url("grpc").removeprefix("grpc://")) as channel:
        answer: bytes = channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        return answer


# --- who may do what, and what is told ---


def test_only_the_launcher_controls_models(server: TritonServer) -> None:
    client = InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    for ask_for in (client.get_model_repository_index, lambda: client.unload_model("embed")):
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            ask_for()
    client.close()
    for path in ("index", "models/embed/unload", "models/embed/load"):
        assert get(f"{server.http_url}/v2/repository/{path}", b"{}")[0] == 403


def test_a_log_for_machines(repository: Path) -> None:
    command = [sys.executable, "-m", "server", "--repository", str(repository), "--log-format=json"]
    ports = [f"--{endpoint}-port=0" for endpoint in ENDPOINTS]
    process = subprocess.Popen(command + ports, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as pool:
        log = pool.submit(process.stderr.read)  # type: ignore[union-attr]
        assert process.stdout is not None
        http_url = process.stdout.readline().split()[1]
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    process.communicate()
    lines = [json.loads(line) for line in log.result().splitlines()]
    assert all(line.keys() >= {"time", "level", "event"} for line in lines)
    assert [line["event"] for line in lines if line["event"] != "triton"] == ["start", "health", "stop", "stopped"]
    (start,) = [line for line in lines if line["event"] == "start"]
    assert (start["http"], start["level"]) == (http_url, "info")
    assert any("Started GRPCInferenceService" in line["message"] for line in lines if line["event"] == "triton")
