"""The command: `python -m export.build_engines --repository DIR`, where the engines shall serve.

Needs TensorRT and NumPy alone. Of the two graphs that export wrote for each tower, it takes the one with packed
attention if TensorRT has kernels for it on this card, and else the one with padded attention.
"""

from __future__ import annotations

import argparse
import math
import re
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from . import engines
from .errors import ExportError
from .paths import local_path
from .reference import Array, Reference, lay_out

TOWERS = ("vision_encoder", "language_model")
GRAPHS = ("tensorrt.onnx", "tensorrt_padded.onnx")  # the best first
PLAN = "model.plan"
EXPORT_CURE = "Write it with ./scripts/export --variant tensorrt."
INPUT = re.compile(r'name: "(\w+)" .*dims: \[([^\]]*)\]\s+allow_ragged_batch')
MAX_BATCH_SIZE = re.compile(r"^max_batch_size: (\d+)", re.MULTILINE)
PARAMETER = re.compile(r'parameters\s*\{\s*key:\s*"([^"]*)"\s*value\s*\{\s*string_value:\s*"([^"]*)"')
SENTINEL = 1  # item, token and visual token of a pack without images
TYPICAL_ROWS = {  # of a batch, for which kernels are chosen
    "input_ids": 2048,
    "position_ids": 2048,
    "lengths": 32,
    "image_embeds": 512,
    "patches": 1024,
    "grid_thw": 4,
}


def build_engines(repository: Path, compute_capability: str | None = None) -> list[Path]:
    """Build the engine of each tower, run it against the reference that export left, and place it if it agrees.

    Parameters
    ----------
    repository
        Folder that export wrote, with the variant tensorrt.
    compute_capability
        SM80, SM89, ... of another card: such engines are placed without having been run.

    Returns
    -------
    list
        The plans.

    Raises
    ------
    ExportError
        An engine is not built, or disagrees; then there is no plan of that tower.
    """
    started = time.monotonic()

    def say(what: str) -> None:
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
        print(f"{time.monotonic() - started:6.1f} s  {peak_gib:5.2f} GiB peak  {what}", flush=True)

    library = engines.load_library()
    say(f"{library.__name__} {library.__version__}")
    engines.check_target(compute_capability)
    plans = []
    for name in TOWERS:
        tower = repository / name / "1"
        missing = [file for file in (*GRAPHS, "reference.npz") if not (tower / file).is_file()]
        if missing:
            raise ExportError(f"{tower} lacks {', '.join(missing)}. {EXPORT_CURE}")
        plan = tower / PLAN
        plan.unlink(missing_ok=True)
        reference, tolerance = Reference.load(tower / "reference.npz")
        # the reference fits, with one more request
        profile = find_profile(repository, name, lay_out([reference.requests[0], *reference.requests]))
        refusals = []
        for graph in GRAPHS:
            try:
                content = engines.build(
                    tower / graph,
                    profile,
                    compute_capability=compute_capability,
                    timing_cache=tower / "timing.cache",
                    say=say,
                )
                if compute_capability is None:
                    report, _ = reference.check(name, engines.EngineTower(content), tolerance)
                    say("agrees: " + ", ".join(f"{what} {cosine:.6f}" for what, cosine in report.items()))
            except ExportError as error:
                refusals.append(str(error))
                say(str(error))
                continue
            partial = plan.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(plan)
            plans.append(plan)
            break
        else:
            raise ExportError(f"no engine of {name}: {' '.join(refusals)}")
    if compute_capability is not None:
        say(f"placed for {compute_capability}, and NOT RUN: whether they agree shows on such a card alone")
    if library.__name__ != "tensorrt":
        say(f"built by {library.__name__}: only its own runtime loads them, and Triton's backend has that of tensorrt")
    return plans


def find_profile(repository: Path, name: str, smallest: Mapping[str, Array]) -> engines.Profile:
    """Return the sizes of every input of a tower, from the bounds of requests and the packs of a batch.

    The largest batch that the server makes fits, and the batch `smallest` whatever the bounds are.
    """
    config = _read(repository / name / "configs/tensorrt.pbtxt")
    bounds = {key: int(value) for key, value in PARAMETER.findall(_read(repository / "preprocess/config.pbtxt"))}
    packs = MAX_BATCH_SIZE.search(config)
    if packs is None:
        raise ExportError(f"{repository / name}/configs/tensorrt.pbtxt has no max_batch_size. {EXPORT_CURE}")
    rows = {
        "input_ids": bounds["max_pack_tokens"] + SENTINEL,
        "position_ids": bounds["max_pack_tokens"] + SENTINEL,
        "lengths": bounds["max_items"] + SENTINEL,
        "image_embeds": bounds["max_pack_image_tokens"],
        "patches": bounds["max_pack_image_tokens"],
        "grid_thw": bounds["max_items"],
    }
    profile = {}
    for tensor, dims in INPUT.findall(config):
        row_size = math.prod(int(size) for size in dims.split(",") if int(size) > 0)
        sizes = {tensor: (row_size, TYPICAL_ROWS[tensor] * row_size, int(packs[1]) * rows[tensor] * row_size)}
        sizes[f"{tensor}_offsets"] = (2, 2, int(packs[1]) + 1)
        for key, (least, typical, most) in sizes.items():
            most = max(most, smallest[key].size if key in smallest else 0)
            profile[key] = (least, min(typical, most), most)
    return profile


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing. {EXPORT_CURE}") from error


def main() -> int:
    """Parse the command line; a refusal is a message, not a stack trace."""
    parser = argparse.ArgumentParser(prog="build-engines", description="Build the TensorRT engines of a repository.")
    parser.add_argument("--repository", type=local_path, required=True, help="model repository with variant tensorrt")
    parser.add_argument(
        "--compute-capability",
        metavar="SM89",
        help="build ahead of time for another kind of card, where the library can; such engines are not run",
    )
    arguments = parser.parse_args()
    try:
        build_engines(arguments.repository, arguments.compute_capability)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the engine that was being built is not there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
