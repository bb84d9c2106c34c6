"""The folder of backends that the wheel's tritonserver loads: its own Python backend, and ours for ONNX graphs."""

from __future__ import annotations

import shutil
from pathlib import Path

from .locate import WheelServer

OUR_BACKENDS = Path(__file__).parent / "backends"


def assemble(server: WheelServer, folder: Path) -> None:
    """Lay out `folder` for --backend-directory.

    python/
        libtriton_python.so, triton_python_backend_utils.py, triton_python_backend_stub
    onnxruntime/
        model.py and its siblings

    Parameters
    ----------
    server
        Whose Python backend to take.
    folder
        To create. Everything is copied: the server refuses a library that a link leads out of the folder.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(server.python_backend, folder / "python", ignore=ignore)
    shutil.copy2(server.stub, folder / "python")
    shutil.copytree(OUR_BACKENDS, folder, ignore=ignore, dirs_exist_ok=True)
