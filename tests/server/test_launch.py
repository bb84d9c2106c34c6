"""Starting and stopping the server: what is refused before, what is said after, and that nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from numpy.testing import assert_allclose
from tritonclient.grpc import InferenceServerClient

from server import locate
from server.launch import ServerStartError, TritonServer
from server.locate import WheelServer, find_server
from server.network import check_host, claim_ports
from server.process import TritonProcess, takes_flag, wheel_environment
from server.repository import TOWERS, check_repository
from server.server_log import find_failure
from server.watch import group_members
from tests.server.processes import DEADLINE_S, ROOT, child_of, leftovers, served_by_command
from tests.wire import Wire


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a repository with all files in place, and graphs that nobody loads."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "model_repository", folder)
    for tower in TOWERS:
        (folder / tower / "1/model.onnx").touch()
    check_repository(folder)
    return folder


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- refused before anything starts ---


def test_missing_repository(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"nowhere does not exist\. Run `python -m export"):
        check_repository(tmp_path / "nowhere")


def test_missing_models(folder: Path) -> None:
    shutil.rmtree(folder / "pooling")
    (folder / "info/config.pbtxt").unlink()
    with pytest.raises(ServerStartError, match=r"lacks the models info, pooling\. Run `python -m export"):
        check_repository(folder)


@pytest.mark.parametrize("tower", TOWERS)
def test_missing_graph(folder: Path, tower: str) -> None:
    (folder / tower / "1/model.onnx").unlink()
    with pytest.raises(ServerStartError, match=rf"{tower}/1 has no model\.onnx\. Run `python -m export"):
        check_repository(folder)


def test_bounds_that_differ(folder: Path) -> None:
    replace(
        folder / "info/config.pbtxt",
        '"max_items"             value { string_value: "64" }',
        '"max_items" value { string_value: "65" }',
    )
    with pytest.raises(ServerStartError, match="the bound max_items is 64 in preprocess and 65 in info"):
        check_repository(folder)


def test_a_bound_that_is_missing(folder: Path) -> None:
    replace(folder / "info/config.pbtxt", '"min_pixels"', '"least_pixels"')
    with pytest.raises(ServerStartError, match="the bound least_pixels is None in preprocess and 4096 in info"):
        check_repository(folder)


def test_bounds_of_the_chosen_variant(folder: Path) -> None:
    for model in ("preprocess", "info"):
        (folder / model / "configs").mkdir(exist_ok=True)
        shutil.copy(folder / model / "config.pbtxt", folder / model / "configs/gpu.pbtxt")
    check_repository(folder, "gpu")
    replace(folder / "preprocess/configs/gpu.pbtxt", '"64"', '"128"')
    check_repository(folder)
    with pytest.raises(ServerStartError, match="the bound max_items is 128 in preprocess and 64 in info"):
        check_repository(folder, "gpu")


def test_variant_that_no_model_has(folder: Path) -> None:
    (folder / "pooling/configs").mkdir()
    (folder / "pooling/configs/gpu.pbtxt").touch()
    with pytest.raises(ServerStartError, match=r"--variant 'gpus': .* holds cpu, gpu alone\. Serve that, or export"):
        check_repository(folder, "gpus")


@pytest.mark.parametrize("name", ["gpu", "", "config", "../config"])
def test_variant_where_there_is_none(folder: Path, name: str) -> None:
    with pytest.raises(ServerStartError, match=rf"--variant '{name}': .* holds cpu alone"):
        check_repository(folder, name)


def test_variant_whose_graph_is_missing(folder: Path) -> None:
    with pytest.raises(ServerStartError, match=r"--variant 'cuda': .* holds cpu alone"):
        check_repository(folder, "cuda")
    for tower in TOWERS:
        (folder / tower / "1/cuda.onnx").touch()
    check_repository(folder, "cuda")
    (folder / "vision_encoder/1/model.onnx").unlink()
    check_repository(folder, "cuda")
    with pytest.raises(ServerStartError, match=r"--variant 'cpu': .* holds cuda alone"):
        check_repository(folder)


@pytest.mark.parametrize("other", ["model.onnx", None])
def test_engines_that_were_not_built(folder: Path, other: str | None) -> None:
    for tower in TOWERS:
        (folder / tower / "1/model.onnx").unlink()
        (folder / tower / "1/tensorrt.onnx").touch()
        if other:
            (folder / tower / "1" / other).touch()
    (folder / "language_model/1/model.plan").touch()
    there = "; there is cpu" if other else ""
    message = rf"/vision_encoder/1/model\.plan was not built{there}\. Run \./scripts/build-engines --repository"
    with pytest.raises(ServerStartError, match=message):
        check_repository(folder, "tensorrt")
    (folder / "vision_encoder/1/model.plan").touch()
    check_repository(folder, "tensorrt")


def test_engines_without_a_backend_for_them(folder: Path) -> None:
    for tower in TOWERS:
        (folder / tower / "1/model.plan").touch()
    server = TritonServer(folder, model_config_name="tensorrt")
    with pytest.raises(ServerStartError, match=r"no backend for TensorRT\. Serve in NVIDIA's container"), server:
        pass


def test_lost_version_folders(folder: Path) -> None:
    shutil.rmtree(folder / "embed/1")
    shutil.rmtree(folder / "embed_text/1")
    with pytest.raises(ServerStartError, match=r"lacks the folders embed/1, embed_text/1\. Git and object stores"):
        check_repository(folder)


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"port {port} of 127\.0\.0\.1 cannot be used .* --grpc-port"):
            claim_ports("127.0.0.1", {"http": 0, "grpc": port, "metrics": 0})


def test_port_out_of_range() -> None:
    with pytest.raises(ServerStartError, match=r"port 70000 .* --http-port"):
        claim_ports("127.0.0.1", {"http": 70000})


def test_free_ports_differ() -> None:
    assert len(set(claim_ports("127.0.0.1", {"http": 0, "grpc": 0, "metrics": 0}).values())) == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_remote_hosts_need_insistence(host: str) -> None:
    check_host("127.0.0.1", allow_remote=False)
    check_host(host, allow_remote=True)
    with pytest.raises(ServerStartError, match=rf"--host {host} can be reached .* --insecure-remote"):
        check_host(host, allow_remote=False)


@pytest.mark.parametrize("host", ["localhost", "::1", ""])
def test_hosts_are_ipv4_addresses(host: str) -> None:
    with pytest.raises(ServerStartError, match=f"--host '{host}' is not an IPv4 address"):
        check_host(host, allow_remote=True)


def test_numpy_2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "CONTAINER_SERVER", Path("/nonexistent"))
    monkeypatch.setattr(locate, "version", {"numpy": "2.1.0"}.__getitem__)  # cannot be installed beside the server
    with pytest.raises(ServerStartError, match=r"numpy 2\.1\.0 .* needs numpy < 2"):
        locate.find_server()


def test_python_without_a_stub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "CONTAINER_SERVER", Path("/nonexistent"))
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    with pytest.raises(ServerStartError, match=r"no part for Python 3\.99\. Use one of \['3\.8'"):
        locate.find_server()


@pytest.mark.parametrize(("flag", "is_taken"), [("http-max-input-size", True), ("http-max", False), ("other", False)])
def test_a_flag_is_known_by_the_servers_help(tmp_path: Path, flag: str, is_taken: bool) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\necho '  --http-max-input-size <integer>' >&2\nexit 1\n")
    program.chmod(0o755)
    assert takes_flag(program, flag, dict(os.environ)) is is_taken


@pytest.mark.triton
def test_the_wheels_server_is_asked() -> None:
    found = find_server()
    environment = {**os.environ, **wheel_environment(found)} if isinstance(found, WheelServer) else dict(os.environ)
    assert takes_flag(found.executable, "exit-timeout-secs", environment)


def test_failures_are_found_in_a_log() -> None:
    start = 'E1101 10:00:00.1 7 server.cc:241] "CudaDriverHelper has not been initialized."\n'
    load = (
        "E1101 10:00:00.2 7 model_lifecycle.cc:642] \"failed to load 'tower' version 1: Internal: "
        'TritonModelException: two\\nlines\\n\\nAt:\\n  /model.py(6): initialize\\n"\n'
    )
    end = "error: creating server: Internal - failed to load all models\n"
    assert find_failure(start + load + end) == "tower: two\nlines"
    assert find_failure(start + end) == end.rstrip()
    assert find_failure("a line\nanother\n") == "a line\nanother"


# --- the real server ---


@pytest.mark.triton
@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_command_serves_and_leaves_nothing(repository: Path, stop_signal: signal.Signals) -> None:
    before = leftovers()
    with served_by_command(repository) as (process, line):
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+ grpc://127\.0\.0\.1:\d+\n", line)
        assert leftovers() - before  # what follows could fail
        members = group_members(child_of(process.pid))
        assert len(members) > 1
        process.send_signal(stop_signal)
        assert process.wait(DEADLINE_S) == 0
        assert process.communicate()[0] == ""  # the line was the only one
    assert not any(Path(f"/proc/{member}").exists() for member in members)
    assert leftovers() <= before


@pytest.mark.triton
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repository", "nowhere"], "error: the model repository nowhere does not exist."),
        (["--repository", "model_repository"], "error: model_repository/vision_encoder/1 has no model.onnx"),
        (["--repository", "{folder}", "--model-config-name=x"], "error: --variant 'x': {folder} holds cpu alone."),
        (["--repository", "{folder}", "--variant", "cuda"], "error: --variant 'cuda': {folder} holds cpu alone."),
        (["--repository", "{folder}", "--host", "0.0.0.0"], "error: --host 0.0.0.0 can be reached from other machines"),
        (["--repository", "{folder}", "--http-port", "{port}"], "error: port {port} of 127.0.0.1 cannot be used"),
    ],
)
def test_command_refuses_in_one_sentence(folder: Path, arguments: list[str], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"folder": folder, "port": taken.getsockname()[1]}
        command = [sys.executable, "-m", "server", "--health-port=0", *(text.format(**values) for text in arguments)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(message.format(**values))
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.triton
def test_broken_graph_is_told_in_a_few_lines(repository: Path, tmp_path: Path) -> None:
    before, broken = leftovers(), tmp_path / "broken"
    shutil.copytree(repository, broken)
    (broken / "language_model/1/model.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(ServerStartError, match=r"language_model: .*Protobuf parsing failed") as caught,
        TritonServer(broken),
    ):
        pass
    assert len(str(caught.value).splitlines()) < 6
    assert leftovers() <= before


@pytest.mark.triton
def test_canary_finds_a_server_that_answers_nonsense(repository: Path, tmp_path: Path) -> None:
    before, broken = leftovers(), tmp_path / "broken"
    shutil.copytree(repository, broken)
    replace(
        broken / "pooling/1/model.py", "prefix / np.maximum(norm, EPSILON)", "2 * prefix / np.maximum(norm, EPSILON)"
    )
    with pytest.raises(ServerStartError, match=r"embedded with norm (2\.0|1\.9)\d* instead of 1"), TritonServer(broken):
        pass
    replace(broken / "pooling/1/model.py", "size = pooled.shape[1] if", "size = 0 if")
    with (
        pytest.raises(ServerStartError, match=r"a text was not embedded: .*0 dimensions were asked"),
        TritonServer(broken),
    ):
        pass
    assert leftovers() <= before


@pytest.mark.triton
def test_a_repository_from_git_or_an_object_store_is_served(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    for file in repository.rglob("*"):
        if file.is_file():  # all that these keep
            (copy / file.relative_to(repository)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy / file.relative_to(repository))
    with TritonServer(copy) as server:
        embed = Wire(server.grpc_url).embed
        assert_allclose(embed(text=[b"a"])["embedding"], embed("embed_text", text=[b"a"])["embedding"], atol=1e-6)


SLOW_CONFIG = """
name: "slow"
backend: "python"
max_batch_size: 0
output [ { name: "done" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
SLOW_MODEL = """
import pathlib
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        pathlib.Path({started!r}).touch()
        time.sleep({delay_s})
        return [pb_utils.InferenceResponse([pb_utils.Tensor("done", np.array([1], np.int32))]) for _ in requests]
"""


@pytest.mark.triton
def test_requests_in_flight_are_finished(tmp_path: Path) -> None:
    started = tmp_path / "started"
    (tmp_path / "repository/slow/1").mkdir(parents=True)
    (tmp_path / "repository/slow/config.pbtxt").write_text(SLOW_CONFIG)
    (tmp_path / "repository/slow/1/model.py").write_text(SLOW_MODEL.format(started=str(started), delay_s=3))
    answers: list[list[int]] = []
    with TritonProcess(tmp_path / "repository") as server:
        client = InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        thread = threading.Thread(target=lambda: answers.append(client.infer("slow", []).as_numpy("done").tolist()))
        thread.start()
        deadline = time.monotonic() + DEADLINE_S
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    thread.join()
    client.close()
    assert answers == [[1]]
