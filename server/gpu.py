"""Can the GPUs of this machine serve? Asked of NVIDIA's driver itself, before a server is started on them.

Without this, Triton says of a GPU that cannot be used that there is none, and ONNX Runtime goes on with the CPU.
"""

from __future__ import annotations

import ctypes

from .errors import ServerStartError
from .locate import ContainerServer, WheelServer

MIN_CUDA = 13  # of onnxruntime-gpu and of the containers; the driver counts as 1000 * major + 10 * minor
MIN_CAPABILITY = (8, 0)  # bfloat16 and FlashAttention begin with Ampere
CAPABILITY_ATTRIBUTES = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
DRIVER_CURE = (
    "Install NVIDIA's driver, 580 or newer, so that nvidia-smi lists the GPU; give a container the GPUs with "
    "docker run --gpus all. Or serve --variant cpu."
)


def check_gpus(server: ContainerServer | WheelServer) -> None:
    """Check that every GPU that the server would take can be used.

    Raises
    ------
    ServerStartError
        ONNX Runtime is its build for CPUs, there is no driver or no GPU, or one of them is too old.
    """
    if isinstance(server, WheelServer) and not server.sees_gpus:
        raise ServerStartError(
            "the package onnxruntime in this environment is its build for CPUs. Run ./scripts/install --gpu, or serve "
            "--variant cpu."
        )
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ServerStartError(f"this machine has no NVIDIA driver ({error}). {DRIVER_CURE}") from None
    if status := driver.cuInit(0):
        raise ServerStartError(f"NVIDIA's driver shows no GPU (cuInit gives CUDA error {status}). {DRIVER_CURE}")
    cuda = _ask(driver.cuDriverGetVersion)
    if cuda < 1000 * MIN_CUDA:
        raise ServerStartError(
            f"NVIDIA's driver is of CUDA {cuda // 1000}.{cuda % 1000 // 10}, and ONNX Runtime needs CUDA {MIN_CUDA}. "
            f"{DRIVER_CURE}"
        )
    for device in range(_ask(driver.cuDeviceGetCount)):
        capability = tuple(_ask(driver.cuDeviceGetAttribute, attribute, device) for attribute in CAPABILITY_ATTRIBUTES)
        if capability < MIN_CAPABILITY:
            raise ServerStartError(
                f"GPU {device} has compute capability {capability[0]}.{capability[1]}, and at least "
                f"{MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} is needed. Leave it out of CUDA_VISIBLE_DEVICES, or serve "
                "--variant cpu."
            )


def _ask(function: ctypes._NamedFuncPointer, *arguments: int) -> int:
    """Return the number that a function of the driver writes to its first argument."""
    answer = ctypes.c_int()
    if status := function(ctypes.byref(answer), *arguments):
        raise ServerStartError(
            f"NVIDIA's driver does not answer ({function.__name__}: CUDA error {status}). {DRIVER_CURE}"
        )
    return answer.value
