"""The command: `python -m export --checkpoint DIR_OR_HUB_ID --output DIR`."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from settings import DEFAULT_INSTRUCTION, MIN_DIMENSIONS

from .calibration import QUERY_INSTRUCTION, read_samples, samples
from .checkpoint import Checkpoint, open_checkpoint
from .errors import DisagreementError, ExportError
from .language_model import LanguageModel
from .paths import local_path
from .quantization import integer_speed, largest_weight, quantize_within
from .reference import agree
from .repository import drop_configs, fill_sizes, new_repository, write_json
from .to_onnx import example_language_inputs, example_vision_inputs, to_onnx
from .validate import Case, Examples, imitate, reference_cases, runs_here, sample_cases, validate
from .variants import FP32, INT8, PRECISIONS, VARIANTS, Variant, choose_variants
from .vision_encoder import VisionEncoder

AUTOMATIC = "auto"
INSTRUCTIONS = (DEFAULT_INSTRUCTION, QUERY_INSTRUCTION)


def export(
    name: str,
    output: Path,
    *,
    variants: Sequence[str] = ("cpu",),
    precisions: Sequence[str] = (),
    instructions: Sequence[str] = (),
    calibration: Path | None = None,
    min_cosine: float | None = None,
    exif_orientation: bool = True,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write a deployable model repository for a checkpoint, and only if it agrees with transformers.

    Parameters
    ----------
    name
        A folder with a Qwen3-VL(-Embedding) checkpoint, or a hub id.
    output
        The repository to write.
    variants
        Names in `VARIANTS`: the renderings that the repository shall hold.
    precisions
        Of weights and computation: each variant takes the one that it can be written in, or else its own. "auto" is
        the fastest on this CPU that is near enough to transformers.
    instructions
        Those of the application, beside `INSTRUCTIONS`: items under a known instruction take less work on CPUs.
    calibration
        JSON Lines of `text`, `image` and `instruction` to measure int8 on, instead of `calibration.samples`.
    min_cosine
        Bound on the cosine to transformers, instead of the precision's own.
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

    automatic = AUTOMATIC in precisions
    if automatic:
        speed = integer_speed()
        say(f"products in int8 are computed {speed:.2f} times as fast as in fp32 on this CPU")
        fastest = INT8 if speed > 1 else FP32
        precisions = [fastest.name if name == AUTOMATIC else name for name in precisions]
    chosen = choose_variants(variants, precisions)
    if min_cosine is not None:
        chosen = [variant.bounded(min_cosine) for variant in chosen]
    examples = read_samples(calibration) if calibration else list(samples())
    checkpoint = replace(open_checkpoint(name), exif_orientation=exif_orientation)
    with new_repository(output, overwrite=overwrite) as repository:
        say(f"{checkpoint.name}: hidden size {checkpoint.hidden_size}, DeepStack of {checkpoint.num_deepstack}")
        write_small_files(repository, checkpoint, chosen)
        model = checkpoint.load_model()
        say("weights loaded")
        cases = reference_cases(checkpoint, model)
        if any(variant.precision.in_integers for variant in chosen):
            cases += sample_cases(checkpoint, model, examples)
        say(f"transformers ran {len(cases)} cases")
        report: dict[str, float] = {}
        beginnings = [checkpoint.beginning(instruction) for instruction in {*INSTRUCTIONS, *instructions}]
        for index, variant in enumerate(chosen):
            try:
                report |= export_towers(repository, checkpoint, model, cases, variant, beginnings, say)
            except DisagreementError as error:
                if not automatic or not variant.precision.in_integers:
                    raise
                say(f"{error} It is written in fp32.")
                chosen[index] = variant = replace(variant, precision=FP32)
                report |= export_towers(repository, checkpoint, model, cases, variant, beginnings, say)
            say(f"{variant.name}: both towers exported in {variant.precision.name}")
        write_info(repository, checkpoint, chosen)
        del model  # before the graphs take as much memory again
        gc.collect()
        for variant in chosen:
            if runs_here(variant):
                report |= validate(repository, checkpoint, cases, variant)
            elif variant.provider:
                say(f"{variant.name}: no graph was run; this machine lacks {variant.provider} or a GPU for it")
            else:
                Examples.of_images(cases).save(repository / "vision_encoder/1/reference.npz", variant.precision)
                Examples.of_items(checkpoint, cases).save(
                    repository / "language_model/1/reference.npz", variant.precision
                )
                say(f"{variant.name}: no graph was run. ./scripts/build-engines does that where it is served")
        say("agrees with transformers: " + ", ".join(f"{what} {cosine:.6f}" for what, cosine in report.items()))
    say(f"wrote {output}")
    return report


def export_towers(
    repository: Path,
    checkpoint: Checkpoint,
    model: Any,
    cases: list[Case],
    variant: Variant,
    beginnings: Sequence[list[int]] = (),
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Write both graphs of a variant, which know the tokens in `beginnings`.

    Returns
    -------
    dict
        The smallest cosines to the reference, where the graphs cannot run on this machine and PyTorch stands in.
    """
    dtype, image_token_id = variant.precision.dtype, checkpoint.config.image_token_id
    images, items = Examples.of_images(cases), Examples.of_items(checkpoint, cases)

    def build_vision() -> VisionEncoder:
        return VisionEncoder(rounded(model.visual, dtype), variant.operators)

    def build_language() -> LanguageModel:
        language = rounded(model.language_model, dtype)
        tower = LanguageModel(language, image_token_id, checkpoint.num_deepstack, variant.operators)
        if variant.operators.attends_from_some:
            tower.know(beginnings)
        return tower

    def finish(name: str, build: Callable[[], Any], examples: Examples) -> Any:
        if not variant.precision.in_integers:
            return build()

        def check(tower: Any) -> None:
            agree(name, examples.in_torch(tower), examples.expected, variant.precision)

        return quantize_within(build, examples.in_torch, check, say)

    vision = finish("vision_encoder", build_vision, images)
    language = finish("language_model", build_language, items)
    report = {} if runs_here(variant) else imitate(vision, language, checkpoint, cases, variant)
    to_onnx(vision, example_vision_inputs(), "image_embeds", repository / "vision_encoder/1" / variant.graph, variant)
    inputs = example_language_inputs(checkpoint.vocab_size, image_token_id, checkpoint.image_embeds_size)
    to_onnx(language, inputs, "pooled", repository / "language_model/1" / variant.graph, variant)
    return report


def rounded(model: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a model whose parameters are of `dtype`, and shared where they are already.

    Buffers hold frequencies and positions, which stay in float32.
    """
    shared = {id(parameter): nn.Parameter(parameter.detach().to(dtype), False) for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def write_small_files(repository: Path, checkpoint: Checkpoint, variants: list[Variant]) -> None:
    """Fill in the configs' sizes and put the tokenizer and the prompt in their places."""
    drop_configs(repository, [variant.name for variant in variants])
    fill_sizes(repository, checkpoint.hidden_size, checkpoint.image_embeds_size)
    checkpoint.copy_tokenizer(repository / "preprocess/1")
    write_json(repository / "preprocess/1/preprocessing.json", checkpoint.preprocessing())


def write_info(repository: Path, checkpoint: Checkpoint, variants: list[Variant]) -> None:
    """Write the self-description of what the repository holds."""
    info = {
        "checkpoint": checkpoint.name,
        "dimensions": checkpoint.hidden_size,
        "min_dimensions": MIN_DIMENSIONS,
        "default_instruction": DEFAULT_INSTRUCTION,
        "variants": {
            variant.name: {
                "precision": variant.precision.name,
                "fingerprint": checkpoint.fingerprint(graph_options(variant)),
            }
            for variant in variants
        },
        "versions": {package: version(package) for package in ("torch", "transformers", "onnx", "onnxruntime")},
    }
    write_json(repository / "info/1/info.json", info)


def graph_options(variant: Variant) -> dict[str, str]:
    """Return what vectors depend on beside the checkpoint."""
    options = {"precision": variant.precision.name}
    if variant.precision.in_integers:
        options["largest_weight"] = str(largest_weight())
    return options


def main() -> int:
    """Parse the command line; a refusal is a message, not a stack trace."""
    parser = argparse.ArgumentParser(prog="export", description="Convert a checkpoint into a Triton model repository.")
    parser.add_argument("--checkpoint", required=True, help="folder or hub id of a Qwen3-VL(-Embedding) checkpoint")
    parser.add_argument("--output", type=local_path, required=True, help="model repository to write")
    parser.add_argument(
        "--variant",
        choices=list(VARIANTS),
        action="append",
        help="hardware to write for; may be repeated; default: cpu",
    )
    parser.add_argument(
        "--precision",
        choices=[*PRECISIONS, AUTOMATIC],
        action="append",
        help="of weights and computation; may be repeated, for variants that differ; default: each variant's own; "
        f"{AUTOMATIC}: the fastest on this CPU that is near enough to transformers",
    )
    parser.add_argument(
        "--instruction",
        action="append",
        default=[],
        help="one that the application uses, beside the client's own; may be repeated; such items cost less on CPUs",
    )
    parser.add_argument(
        "--calibration",
        type=local_path,
        help="JSON Lines of text, image and instruction to measure int8 on; default: everyday texts and pictures",
    )
    parser.add_argument(
        "--min-cosine",
        type=float,
        help="to transformers in float32, below which nothing is written; default: the precision's own",
    )
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
            variants=arguments.variant or ["cpu"],
            precisions=arguments.precision or (),
            instructions=arguments.instruction,
            calibration=arguments.calibration,
            min_cosine=arguments.min_cosine,
            exif_orientation=arguments.exif_orientation,
            overwrite=arguments.overwrite,
        )
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.output} was not written.", file=sys.stderr)
        return 130
    print(json.dumps({"output": str(arguments.output), "cosine": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
