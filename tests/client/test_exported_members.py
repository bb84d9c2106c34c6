"""The surface of the package: what is exported, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import vlembed


def test_all_is_what_can_be_imported() -> None:
    public = {
        name for name, value in vars(vlembed).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert sorted(vlembed.__all__) == sorted(public)


def test_everything_exported_is_documented() -> None:
    own = [getattr(vlembed, name).__doc__ or "" for name in vlembed.__all__]
    assert all("." in doc.splitlines()[0] for doc in own)  # a dataclass without one gets its signature instead


def test_import_brings_numpy_and_tritonclient_only() -> None:
    heavy = {"PIL", "torch", "transformers", "gevent", "geventhttpclient", "aiohttp"}
    code = f"import sys, vlembed; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert run.stdout.decode().strip() == "[]", run.stderr.decode()
