"""A session that runs on the GPU that it was made for, or an error that says what is missing.

When its part for CUDA does not load, ONNX Runtime goes on with the CPU and gives the reason in its log alone; a graph
in bfloat16 then fails for an operator that the CPU lacks.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import onnxruntime

CUDA = "CUDAExecutionProvider"
CURE = "Run ./scripts/install --gpu, and have NVIDIA's driver, 580 or newer; or serve --variant cpu."


class NoCudaError(RuntimeError):
    """A GPU that ONNX Runtime cannot use: why, and the cure."""


def open_on_gpu(path: Path, options: Any, providers: list[Any]) -> Any:
    """Create a session of a graph.

    Raises
    ------
    NoCudaError
        Its part for CUDA is not there or does not load.
    """
    if CUDA not in onnxruntime.get_available_providers():
        raise NoCudaError(f"onnxruntime {onnxruntime.__version__} is the build for CPUs. {CURE}")
    onnxruntime.preload_dlls(directory="")  # CUDA's libraries, where pip installed them
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception:
        _check_library()
        raise
    if CUDA not in session.get_providers():
        _check_library()
        raise NoCudaError(f"onnxruntime {onnxruntime.__version__} does not take this GPU; its log says why. {CURE}")
    return session


def _check_library() -> None:
    """Load ONNX Runtime's part for CUDA as it does itself. Only after it has failed to: it must be the first."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        raise NoCudaError(
            f"onnxruntime {onnxruntime.__version__} cannot load its part for CUDA: {error}. {CURE}"
        ) from None
