"""The command: `python -m export --checkpoint DIR_OR_HUB_ID --output DIR`."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from transformers.utils import logging

from settings import DEFAULT_INSTRUCTION, MIN_DIMENSIONS

from .checkpoint import Checkpoint, ExportError, open_checkpoint
from .language_model import LanguageModel
from .repository import fill_sizes, new_repository, write_json
from .to_onnx import example_language_inputs, example_vision_inputs, to_onnx
from .validate import reference_cases, validate
from .vision_encoder import VisionEncoder


def export(
    name: str, output: Path, *, precision: str = "fp32", exif_orientation: bool = True, overwrite: bool = False
) -> dict[str, float]:
    """Write a deployable model repository for a checkpoint, and only if it agrees with transformers.

    Parameters
    ----------
    name
        A folder with a Qwen3-VL(-Embedding) checkpoint, or a hub id.
    output
        The repository to write.
    precision
        Of weights and computation: "fp32".
    exif_orientation
        Turn pictures upright as EXIF says, instead of leaving them as they are stored.
    overwrite
        Replace `output` if it exists.

    Returns
    -------
    dict
        The smallest cosine to the reference of each comparison made.

    Raises
    ------
    ExportError
        The checkpoint cannot be served, or the graphs disagree with transformers.
    """
    started = time.monotonic()

    def say(what: str) -> None:
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
        print(f"{time.monotonic() - started:6.1f} s  {peak_gib:5.2f} GiB peak  {what}", flush=True)

    checkpoint = replace(open_checkpoint(name), exif_orientation=exif_orientation)
    with new_repository(output, overwrite=overwrite) as repository:
        say(f"{checkpoint.name}: hidden size {checkpoint.hidden_size}, DeepStack of {checkpoint.num_deepstack}")
        write_small_files(repository, checkpoint, precision)
        model = checkpoint.load_model()
        say("weights loaded")
        cases = reference_cases(checkpoint, model)
        say(f"transformers ran {len(cases)} cases")
        vision, language = repository / "vision_encoder/1/model.onnx", repository / "language_model/1/model.onnx"
        to_onnx(VisionEncoder(model.visual), example_vision_inputs(), "image_embeds", vision)
        say("vision_encoder exported")
        image_token_id = checkpoint.config.image_token_id
        to_onnx(
            LanguageModel(model.language_model, image_token_id, checkpoint.num_deepstack),
            example_language_inputs(checkpoint.vocab_size, image_token_id, checkpoint.image_embeds_size),
            "pooled",
            language,
        )
        del model  # before the graphs take as much memory again
        gc.collect()
        say("language_model exported")
        report = validate(repository, checkpoint, cases)
        say("agrees with transformers: " + ", ".join(f"{what} {cosine:.6f}" for what, cosine in report.items()))
    say(f"wrote {output}")
    return report


def write_small_files(repository: Path, checkpoint: Checkpoint, precision: str) -> None:
    """Fill in the configs' sizes and put the tokenizer, the prompt and the self-description in their places."""
    fill_sizes(repository, checkpoint.hidden_size, checkpoint.image_embeds_size)
    checkpoint.copy_tokenizer(repository / "preprocess/1")
    write_json(repository / "preprocess/1/preprocessing.json", checkpoint.preprocessing())
    info = {
        "checkpoint": checkpoint.name,
        "fingerprint": checkpoint.fingerprint({"precision": precision}),
        "dimensions": checkpoint.hidden_size,
        "min_dimensions": MIN_DIMENSIONS,
        "default_instruction": DEFAULT_INSTRUCTION,
        "precision": precision,
        "versions": {package: version(package) for package in ("torch", "transformers", "onnx", "onnxruntime")},
    }
    write_json(repository / "info/1/info.json", info)


def main() -> int:
    """Parse the command line; a refusal is a message, not a stack trace."""
    parser = argparse.ArgumentParser(prog="export", description="Convert a checkpoint into a Triton model repository.")
    parser.add_argument("--checkpoint", required=True, help="folder or hub id of a Qwen3-VL(-Embedding) checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="model repository to write")
    parser.add_argument("--precision", choices=["fp32"], default="fp32", help="of weights and computation")
    parser.add_argument(
        "--exif-orientation",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="turn pictures upright as EXIF says; without it only TIFF is turned, as by the official script",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        report = export(
            arguments.checkpoint,
            arguments.output,
            precision=arguments.precision,
            exif_orientation=arguments.exif_orientation,
            overwrite=arguments.overwrite,
        )
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"output": str(arguments.output), "cosine": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
