"""The command: `python -m export --checkpoint DIR_OR_HUB_ID --output DIR`."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

from transformers.utils import logging

from .checkpoint import DEFAULT_INSTRUCTION, MIN_DIMENSIONS, ExportError, open_checkpoint
from .language_model import LanguageModel
from .repository import begin_repository, fill_sizes, place_repository, write_json
from .to_onnx import example_language_inputs, example_vision_inputs, to_onnx
from .validate import reference_cases, validate
from .vision_encoder import VisionEncoder


def export(name: str, output: Path, *, precision: str = "fp32", overwrite: bool = False) -> dict[str, float]:
    """Write a deployable model repository for a checkpoint, and only if it agrees with transformers.

    Parameters
    ----------
    name
        A folder with a Qwen3-VL(-Embedding) checkpoint, or a hub id.
    output
        The repository to write.
    precision
        Of weights and computation: "fp32".
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

    checkpoint = open_checkpoint(name)
    repository = begin_repository(output, overwrite=overwrite)
    say(f"{checkpoint.name}: hidden size {checkpoint.hidden_size}, DeepStack of {checkpoint.num_deepstack}")
    fill_sizes(repository, checkpoint.hidden_size, checkpoint.image_embeds_size)
    preprocess = repository / "preprocess" / "1"
    checkpoint.copy_tokenizer(preprocess)
    write_json(preprocess / "preprocessing.json", checkpoint.preprocessing())
    write_json(
        repository / "info" / "1" / "info.json",
        {
            "checkpoint": checkpoint.name,
            "fingerprint": checkpoint.fingerprint({"precision": precision}),
            "dimensions": checkpoint.hidden_size,
            "min_dimensions": MIN_DIMENSIONS,
            "default_instruction": DEFAULT_INSTRUCTION,
            "precision": precision,
            "versions": {package: version(package) for package in ("torch", "transformers", "onnx", "onnxruntime")},
        },
    )
    model = checkpoint.load_model()
    say("weights loaded")
    cases = reference_cases(checkpoint, model)
    say(f"transformers ran {len(cases)} cases")
    to_onnx(
        VisionEncoder(model.visual),
        example_vision_inputs(),
        "image_embeds",
        repository / "vision_encoder" / "1" / "model.onnx",
    )
    say("vision_encoder exported")
    config = checkpoint.config
    to_onnx(
        LanguageModel(model.language_model, config.image_token_id, checkpoint.num_deepstack),
        example_language_inputs(
            config.text_config.vocab_size, config.image_token_id, 1 + checkpoint.num_deepstack, checkpoint.hidden_size
        ),
        "pooled",
        repository / "language_model" / "1" / "model.onnx",
    )
    del model
    gc.collect()
    say("language_model exported")
    report = validate(repository, checkpoint, cases)
    say("agrees with transformers: " + ", ".join(f"{what} {cosine:.6f}" for what, cosine in report.items()))
    place_repository(repository, output)
    say(f"wrote {output}")
    return report


def main() -> int:
    """Parse the command line; a refusal is a message, not a stack trace."""
    parser = argparse.ArgumentParser(prog="export", description="Convert a checkpoint into a Triton model repository.")
    parser.add_argument("--checkpoint", required=True, help="folder or hub id of a Qwen3-VL(-Embedding) checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="model repository to write")
    parser.add_argument("--precision", choices=["fp32"], default="fp32", help="of weights and computation")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        report = export(
            arguments.checkpoint, arguments.output, precision=arguments.precision, overwrite=arguments.overwrite
        )
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"output": str(arguments.output), "cosine": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
