"""GPUs that cannot serve are refused with the reason and the cure, and the CPU never takes their place unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from ctypes import CDLL
from pathlib import Path

import onnxruntime
import pytest

from gpu_session import CUDA, NoCudaError, open_on_gpu
from server.repository import TOWERS, needs_gpu

ROOT = Path(__file__).resolve().parents[2]
CPU_BUILD = CUDA not in onnxruntime.get_available_providers()
# A driver that answers as it is told: no machine has all of these faults.
DRIVER = """
#include <stdlib.h>
static int number(const char *name) { return atoi(getenv(name)); }
int cuInit(unsigned flags) { return number("INIT"); }
int cuDriverGetVersion(int *answer) { *answer = number("CUDA"); return 0; }
int cuDeviceGetCount(int *answer) { *answer = 2; return number("COUNT"); }
int cuDeviceGetAttribute(int *answer, int attribute, int device) {
    *answer = attribute == 75 ? (device ? number("CAPABILITY") : 9) : 0;
    return 0;
}
"""
SOUND = {"INIT": "0", "CUDA": "13000", "COUNT": "0", "CAPABILITY": "9"}
CHECK = """
from pathlib import Path
from server.gpu import check_gpus
from server.locate import ContainerServer, ServerStartError
try:
    check_gpus(ContainerServer(Path("tritonserver")))
except ServerStartError as error:
    print(error)
"""


def check(**environment: str) -> str:
    """Return what `check_gpus` says in a process with this environment, or nothing."""
    ran = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a libcuda.so.1."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    return folder


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, ""),
        ({"INIT": "100"}, "NVIDIA's driver shows no GPU (cuInit gives CUDA error 100). Install NVIDIA's driver, 580"),
        ({"CUDA": "12040"}, "NVIDIA's driver is of CUDA 12.4, and ONNX Runtime needs CUDA 13. Install NVIDIA's driver"),
        ({"COUNT": "999"}, "NVIDIA's driver does not answer (cuDeviceGetCount: CUDA error 999)."),
        ({"CAPABILITY": "7"}, "GPU 1 has compute capability 7.0, and at least 8.0 is needed. Leave it out of CUDA_"),
    ],
)
def test_drivers_and_gpus(driver: Path, answers: dict[str, str], says: str) -> None:
    said = check(LD_LIBRARY_PATH=str(driver), **{**SOUND, **answers})
    assert said.startswith(says) if says else not said


def test_no_driver() -> None:
    try:
        CDLL("libcuda.so.1")
    except OSError:
        assert check().startswith("this machine has no NVIDIA driver (libcuda.so.1: cannot open shared object file")
    else:
        pytest.skip("needs a machine without NVIDIA's driver")


@pytest.fixture
def cuda_repository(repository: Path, tmp_path: Path) -> Path:
    """Return a repository that claims to hold the CUDA variant."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    for model in ("info", *TOWERS):
        shutil.copytree(ROOT / "model_repository" / model / "configs", copy / model / "configs")
    for tower in TOWERS:
        shutil.copy(copy / tower / "1/model.onnx", copy / tower / "1/cuda.onnx")
    return copy


def test_which_variant_needs_a_gpu(cuda_repository: Path) -> None:
    assert needs_gpu(cuda_repository, "cuda") and not needs_gpu(cuda_repository)


@pytest.mark.skipif(not CPU_BUILD, reason="needs the package onnxruntime for CPUs")
def test_the_build_for_cpus_is_told_by_the_command(cuda_repository: Path) -> None:
    command = [sys.executable, "-m", "server", "--repository", str(cuda_repository), "--variant", "cuda"]
    command.append("--health-port=0")
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the package onnxruntime in this environment is its build for CPUs. Run ./scripts/")


@pytest.mark.skipif(not CPU_BUILD, reason="needs the package onnxruntime for CPUs")
def test_the_backend_does_not_take_the_cpu_instead(repository: Path) -> None:
    """By itself onnxruntime only warns, and goes on."""
    graph = repository / "language_model/1/model.onnx"
    with pytest.raises(NoCudaError, match=r"is the build for CPUs\. Run \./scripts/install --gpu"):
        open_on_gpu(graph, onnxruntime.SessionOptions(), [CUDA])
