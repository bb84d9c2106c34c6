"""Where a tritonserver is, and whether this Python can run it. Starts nothing and imports nothing of what it finds."""

from __future__ import annotations

import platform
import re
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from .errors import ServerStartError

CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
CONTAINER_STUB = "backends/python/triton_python_backend_stub"  # in the folder above bin/
PYTHON_LIBRARY = re.compile(rb"libpython3\.(\d+)\.so")  # that a stub is linked with
MODEL_PACKAGES = ("numpy", "PIL", "tokenizers")  # that the repository's Python models import
WHEEL_CURE = 'Install it with: pip install nvidia-pytriton==0.7.0 onnxruntime "numpy<2"'


@dataclass(frozen=True)
class WheelServer:
    """The tritonserver 2.51.0 in the wheel nvidia-pytriton: a Python backend, no onnxruntime backend."""

    executable: Path
    python_backend: Path  # folder of libtriton_python.so
    stub: Path  # its worker program, of the running Python version
    library_folders: tuple[Path, ...]
    sees_gpus: bool  # False: the onnxruntime package cannot use them


@dataclass(frozen=True)
class ContainerServer:
    """The tritonserver of an NVIDIA container, with its own backends."""

    executable: Path


def find_server() -> ContainerServer | WheelServer:
    """Find a tritonserver: a container's own first, then the wheel of the running Python.

    Raises
    ------
    ServerStartError
        There is none, or this machine or Python cannot run it.
    """
    if CONTAINER_SERVER.exists():
        return _container_server()
    package = _package_folder("pytriton")
    if package is None:
        raise ServerStartError(
            f"no tritonserver: neither {CONTAINER_SERVER} nor the package nvidia-pytriton exists. {WHEEL_CURE}, "
            "or run inside a Triton container."
        )
    return _wheel_server(package)


def _container_server() -> ContainerServer:
    stub = CONTAINER_SERVER.parents[1] / CONTAINER_STUB
    if not stub.exists():
        raise ServerStartError(
            f"this container has no Python backend ({stub}), which runs preprocess. Use Triton's image with the "
            "Python backend, whose tag ends in -py3."
        )
    running = "{}.{}".format(*sys.version_info)
    linked = PYTHON_LIBRARY.search(stub.read_bytes())
    if linked and (needed := f"3.{linked[1].decode()}") != running:
        raise ServerStartError(
            f"this is Python {running}, but the models run in the container's Python {needed}, which cannot load the "
            f"packages of {sys.executable}. Run the server with Python {needed}; ./scripts/serve takes PYTHON=python"
            f"{needed} and another folder as VENV."
        )
    missing = [name for name in MODEL_PACKAGES if find_spec(name) is None]
    if missing:
        raise ServerStartError(
            f"{sys.executable} has no packages {', '.join(missing)}, which the models import. Install them with: "
            'pip install "numpy<2" --requirement requirements-serving.txt'
        )
    return ContainerServer(CONTAINER_SERVER)


def _wheel_server(package: Path) -> WheelServer:
    machine = (platform.system(), platform.machine())
    if machine != ("Linux", "x86_64"):
        raise ServerStartError(f"the wheel's tritonserver runs on Linux x86_64, not {machine}. Use a Triton container.")
    numpy_version = version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise ServerStartError(
            f"numpy {numpy_version} breaks the wheel's tritonserver, which needs numpy < 2. {WHEEL_CURE}, "
            "in an environment apart from the training libraries."
        )
    onnxruntime = _package_folder("onnxruntime")
    if onnxruntime is None:
        raise ServerStartError(f"the package onnxruntime is missing, which runs the models. {WHEEL_CURE}")
    root = package / "tritonserver"
    return WheelServer(
        executable=root / "bin/tritonserver",
        python_backend=root / "backends/python",
        stub=_stub(root / "python_backend_stubs"),
        library_folders=(package.parent / "nvidia_pytriton.libs", *_python_library_folder()),
        sees_gpus=(onnxruntime / "capi/libonnxruntime_providers_cuda.so").exists(),
    )


def _package_folder(name: str) -> Path | None:
    spec = find_spec(name)  # of a top-level package: imports nothing
    return Path(spec.origin).parent if spec and spec.origin else None


def _stub(stubs: Path) -> Path:
    running = "{}.{}".format(*sys.version_info)
    stub = stubs / running / "triton_python_backend_stub"
    if not stub.exists():
        offered = sorted((path.name for path in stubs.iterdir()), key=lambda name: int(name.split(".")[1]))
        raise ServerStartError(f"the wheel's tritonserver has no part for Python {running}. Use one of {offered}.")
    return stub


def _python_library_folder() -> list[Path]:
    """Return where the stub finds libpython, if the system does not know it by itself."""
    name = "python{}.{}".format(*sys.version_info)
    folder = Path(sys.base_prefix) / "lib"
    if (folder / f"lib{name}.so.1.0").exists():
        return [folder]
    if find_library(name) is None:
        raise ServerStartError(
            f"lib{name}.so.1.0 is missing, which tritonserver's Python processes need. Install it (Debian: "
            f"apt install lib{name}), or use a Python that was built with --enable-shared."
        )
    return []
