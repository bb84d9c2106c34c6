"""Run NVIDIA's perf_analyzer against `embed_text` of a repository, with the requests of embed_text.json.

The binary comes out of the wheel tritonclient 2.51.0, the last one that carries it and runs on Debian 12.

    ./scripts/benchmark perf_analyzer --repository DIR -- --concurrency-range 1:8:2
"""

from __future__ import annotations

import argparse
import csv
import ctypes.util
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from server.launch import TritonServer
from server.paths import local_path

from .report import ROOT, report

WHEEL = "tritonclient==2.51.0"
INPUT = Path(__file__).with_name("embed_text.json")
COLUMNS = {"requests/s": "Inferences/Second", "p50 latency, us": "p50 latency", "p95 latency, us": "p95 latency"}
DEFAULTS = ["--concurrency-range", "1:16:5", "--measurement-mode", "count_windows"]
DEFAULTS += ["--measurement-request-count", "200"]


def install(folder: Path) -> Path:
    """Put the binary and the CUDA runtime library that it is linked with into `folder`, once."""
    binary = folder / "perf_analyzer"
    if not binary.exists():
        with tempfile.TemporaryDirectory() as download:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", download, WHEEL]
            subprocess.run(pip, check=True)
            (wheel,) = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if name.endswith("/bin/perf_analyzer")]
                folder.mkdir(parents=True, exist_ok=True)
                binary.write_bytes(archive.read(member))
        binary.chmod(0o755)
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise SystemExit("error: nvidia-pytriton is not installed. Run ./scripts/install first.")
    (cudart,) = (Path(spec.origin).parents[1] / "nvidia_pytriton.libs").glob("libcudart-*.so*")
    library = folder / "libcudart.so.12"
    library.unlink(missing_ok=True)
    library.symlink_to(cudart)
    return binary


def main() -> int:
    """Parse the command line, serve, and hand everything after `--` to perf_analyzer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=local_path, required=True)
    parser.add_argument("options", nargs="*", help=f"of perf_analyzer; default {' '.join(DEFAULTS)}")
    arguments = parser.parse_args()
    if ctypes.util.find_library("b64") is None:
        print("error: libb64 is missing. Install it: apt-get install libb64-0d", file=sys.stderr)
        return 2
    binary = install(ROOT / ".cache" / "perf_analyzer")
    options = arguments.options or DEFAULTS
    with TritonServer(arguments.repository) as server, tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        command = [str(binary), "-m", "embed_text", "-i", "grpc", "-u", server.grpc_url.removeprefix("grpc://")]
        command += ["--input-data", str(INPUT), "-f", str(table), *options]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
        if status := subprocess.run(command, env=environment, check=False).returncode:
            return status
        with table.open(encoding="utf-8", newline="") as file:
            rows = {
                f"concurrency {row['Concurrency']}: {what}": float(row[column])
                for row in csv.DictReader(file)
                for what, column in COLUMNS.items()
            }
    report("perf_analyzer", rows, repository=arguments.repository.name, options=options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
