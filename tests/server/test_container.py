"""The server of an NVIDIA container: the wheel's own, in a folder that is laid out as /opt/tritonserver is."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from server import locate
from server.backend_folder import assemble
from server.launch import ServerStartError, TritonServer
from tests.wire import Wire

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder, which is found as a container's; it brings its backends and libraries itself."""
    monkeypatch.setattr(locate, "CONTAINER_SERVER", Path("/nonexistent"))
    wheel = locate.find_server()
    assert isinstance(wheel, locate.WheelServer)
    folder = tmp_path / "tritonserver"
    assemble(wheel, folder / "backends")
    executable = folder / "bin/tritonserver"
    executable.parent.mkdir()
    libraries = os.pathsep.join(map(str, wheel.library_folders))
    executable.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {wheel.executable} --backend-directory={folder}/backends "$@"\n'
    )
    executable.chmod(0o755)
    monkeypatch.setattr(locate, "CONTAINER_SERVER", executable)
    return folder


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """Return a Python of this version without packages, as the container's is to ./scripts/serve."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    return tmp_path / "bare/bin/python3"


@pytest.mark.triton
def test_the_models_find_the_packages_of_the_python_that_starts_the_server(
    container: Path, bare_python: Path, repository: Path, server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(bare_python.parent), os.environ["PATH"]]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with TritonServer(repository) as ours:
        embedded = Wire(ours.grpc_url).embed(text=[b"a red apple"], image=[(ROOT / "demo/images/dog.png").read_bytes()])
    theirs = Wire(server.grpc_url).embed(text=[b"a red apple"], image=[(ROOT / "demo/images/dog.png").read_bytes()])
    assert_allclose(embedded["embedding"], theirs["embedding"], atol=1e-6)


def test_missing_packages_are_told_with_the_cure(container: Path, bare_python: Path) -> None:
    program = (
        "import pathlib, sys; from server import locate; locate.CONTAINER_SERVER = pathlib.Path(sys.argv[1])\n"
        "try: locate.find_server()\n"
        "except locate.ServerStartError as error: print(error)"
    )
    command = [bare_python, "-c", program, locate.CONTAINER_SERVER]
    ran = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert f"{bare_python} has no packages numpy, PIL, tokenizers" in ran.stdout
    assert 'pip install "numpy<2" --requirement requirements-serving.txt' in ran.stdout


def test_the_containers_python_must_be_ours(container: Path) -> None:
    """Packages that are compiled for one Python do not load in another: found before it is a stack trace."""
    stub = container / locate.CONTAINER_STUB
    running = b"libpython3.%d.so" % sys.version_info[1]
    assert running in stub.read_bytes()
    stub.write_bytes(stub.read_bytes().replace(running, b"libpython3.99.so"))
    with pytest.raises(ServerStartError, match=r"in the container's Python 3\.99, which .* PYTHON=python3\.99"):
        locate.find_server()


def test_a_container_without_the_python_backend(container: Path) -> None:
    (container / locate.CONTAINER_STUB).unlink()
    with pytest.raises(ServerStartError, match=r"no Python backend .* -py3"):
        locate.find_server()
