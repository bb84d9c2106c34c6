"""Sweep NVIDIA's perf_analyzer over the public models of a repository and each of their steps.

`embed_text` gets the 32 requests of embed_text.json, `embed` and `preprocess` packs of texts and JPEGs, and the other
steps the tensors that such packs become. Options after `--` go to perf_analyzer as they are.

    ./scripts/benchmark perf_analyzer --repository DIR --output DIR -- --concurrency-range 1:8:2

The binary comes out of the wheel tritonclient 2.51.0, the last one that carries it and runs on Debian 12.
"""

from __future__ import annotations

import argparse
import base64
import csv
import ctypes.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing import Bounds, Preprocessor
from server.launch import TritonServer
from server.paths import local_path

from .environments import python_of
from .plot import Lines, plot
from .report import ROOT, report
from .workload import PACK_SIZES, Item, make_items

WHEEL = "tritonclient==2.51.0"
CACHE = ROOT / ".cache"
TEXT_INPUT = Path(__file__).with_name("embed_text.json")
MODELS = ("embed_text", "embed", "preprocess", "vision_encoder", "language_model", "pooling")
COLUMNS = {
    "requests/s": "Inferences/Second",
    **{f"p{q} latency, us": f"p{q} latency" for q in (50, 95, 99)},
}
DEFAULTS = ["--concurrency-range", "1:16:5", "--measurement-mode", "count_windows"]
DEFAULTS += ["--measurement-request-count", "100"]
NUM_REQUESTS = 8  # of different sizes, used in turn

Request = dict[str, npt.NDArray[Any]]


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


def mixed_packs() -> list[list[Item]]:
    """Return packs of 1 to 8 queries and as many pictures of 224 and 512 px."""
    return [
        [item for kind in ("queries", "images of 224 px") for item in make_items(kind, (size + 1) // 2, seed)]
        + make_items("images of 512 px", size // 2, seed)
        for seed, size in enumerate((PACK_SIZES * NUM_REQUESTS)[:NUM_REQUESTS])
    ]


def requests_of(model: str, repository: Path) -> Iterator[Request]:
    """Yield requests of a model, without the batch dimension where the model has one."""
    preprocessor = Preprocessor(repository / "preprocess/1", Bounds())
    generator = np.random.default_rng(0)
    for pack in mixed_packs():
        texts, images = [text.encode() for text, _ in pack], [image for _, image in pack]
        if model in ("embed", "preprocess"):
            yield {"text": np.array(texts, object), "image": np.array(images, object)}
            continue
        made = preprocessor(texts, images)
        if model == "vision_encoder":
            yield {"patches": made.patches[0], "grid_thw": made.grid_thw[0]}
            continue
        num_visual = made.patches.shape[1]
        if model == "language_model":
            embeds = generator.standard_normal((num_visual, preprocessor.image_embeds_size), np.float32)
            tokens = {"input_ids": made.input_ids[0], "position_ids": made.position_ids[0], "lengths": made.lengths[0]}
            yield {**tokens, "image_embeds": embeds}
            continue
        counts = {"num_text_tokens": made.num_text_tokens, "num_image_tokens": made.num_image_tokens}
        pooled = generator.standard_normal((1, made.lengths.size, preprocessor.hidden_size), np.float32)
        yield {"pooled": pooled, **counts}


def write_input(requests: Iterator[Request], path: Path) -> None:
    """Write perf_analyzer's input file, every tensor as its bytes in base64."""

    def encoded(tensor: npt.NDArray[Any]) -> dict[str, Any]:
        if tensor.dtype == object:  # BYTES: each element after its length
            data = b"".join(struct.pack("<I", len(element)) + element for element in tensor)
        else:
            data = tensor.tobytes()
        return {"content": {"b64": base64.b64encode(data).decode()}, "shape": list(tensor.shape)}

    data = [{name: encoded(tensor) for name, tensor in request.items()} for request in requests]
    path.write_text(json.dumps({"data": data}), encoding="utf-8")


def sweep(
    binary: Path, model: str, url: str, input_data: Path, table: Path, options: list[str]
) -> list[dict[str, str]]:
    """Run perf_analyzer on one model and return the rows of its table.

    Raises
    ------
    subprocess.CalledProcessError
        It failed; it has said why.
    """
    command = [str(binary), "-m", model, "-i", "grpc", "-u", url.removeprefix("grpc://")]
    command += ["--input-data", str(input_data), "-f", str(table), *options]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
    with table.open(encoding="utf-8", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["Concurrency"]))


def main() -> int:
    """Parse the command line, serve, and sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=local_path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--output", type=local_path, help="folder for a CSV of each model and one plot")
    parser.add_argument("options", nargs="*", help=f"of perf_analyzer; default {' '.join(DEFAULTS)}")
    arguments = parser.parse_args()
    if ctypes.util.find_library("b64") is None:
        print("error: libb64 is missing. Install it: apt-get install libb64-0d", file=sys.stderr)
        return 2
    binary = install(CACHE / "perf_analyzer")
    options = arguments.options or DEFAULTS
    rows: dict[str, float] = {}
    lines: Lines = {}
    with TritonServer(arguments.repository) as server, tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary)
        output.mkdir(parents=True, exist_ok=True)
        for model in arguments.models:
            input_data = TEXT_INPUT
            if model != "embed_text":
                input_data = Path(temporary) / f"{model}.json"
                write_input(requests_of(model, arguments.repository), input_data)
            try:
                table = sweep(binary, model, server.grpc_url, input_data, output / f"{model}.csv", options)
            except subprocess.CalledProcessError as error:
                return error.returncode
            for row in table:
                what = f"{model}, concurrency {row['Concurrency']}"
                rows |= {f"{what}: {name}": float(row[column]) for name, column in COLUMNS.items()}
            lines[model] = [(float(row["Inferences/Second"]), float(row["p99 latency"]) / 1e3) for row in table]
    report("perf_analyzer", rows, repository=arguments.repository.name, options=options)
    if arguments.output:
        plot(
            python_of(CACHE / "peers", "plot"),
            arguments.output / "perf_analyzer.png",
            lines,
            title=f"{arguments.repository.name}: requests at rising concurrency",
            x="requests/s",
            y="p99 latency, ms",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
