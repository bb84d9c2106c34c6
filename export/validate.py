"""An export is done when it agrees: the ONNX towers against transformers' own forward pass.

The reference runs first, on random and on rendered inputs; then, with its memory given back, the graphs run on the same
inputs: all items in one packed batch, and each alone.

Letters: n items, T tokens, V visual tokens, C = 1 + DeepStack features, D hidden size.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from .calibration import Sample
from .checkpoint import Checkpoint, DisagreementError, ExportError
from .variants import VARIANTS, Precision, Variant

CPU = "CPUExecutionProvider"
MAX_IMITATED_TOKENS = 64
MAX_GOLDEN_DIFFERENCE = 0.004  # bfloat16 noise of the published vectors
MIN_GOLDEN_CORRELATION = 0.99
GOLDEN = Path(__file__).with_name("golden.json")
TEXTS = ["a", "A photograph of a golden retriever puppy.", "一只猫在沙发上睡觉。 قطة تنام على الأريكة 🐱 " * 12]

Array = npt.NDArray[Any]
Request = dict[str, Array]  # the tensors of one pack, by name


@dataclass(frozen=True)
class Case:
    """One item and what transformers makes of it."""

    name: str
    input_ids: npt.NDArray[np.int64]  # (T,)
    position_ids: npt.NDArray[np.int32]  # (T, 3)
    patches: npt.NDArray[np.uint8]  # (V, 6144)
    grid_thw: npt.NDArray[np.int32]  # (images, 3)
    image_embeds: npt.NDArray[np.float32]  # (V, C D), expected
    hidden_state: npt.NDArray[np.float32]  # (D,), expected


def reference_cases(checkpoint: Checkpoint, model: Any) -> list[Case]:
    """Run transformers on random and on rendered inputs."""
    generator = np.random.default_rng(0)
    image_id = checkpoint.config.image_token_id
    cases = []
    for length, grid in [(1, None), (2, None), (97, None), (3, (4, 4)), (20, (2, 10)), (40, (18, 12))]:
        ids = generator.integers(0, checkpoint.vocab_size, length)
        ids[ids == image_id] = 0
        if grid:
            ids = np.concatenate([ids[:2], np.full(grid[0] * grid[1] // 4, image_id), ids[2:]])
        pixels = generator.integers(0, 256, (grid[0] * grid[1] if grid else 0, 1536), np.uint8)
        cases.append(_case(f"{length} random tokens, image grid {grid}", checkpoint, model, ids, pixels, grid))
    ramp = Image.fromarray(np.linspace(0, 255, 96 * 64 * 3, dtype=np.uint8).reshape(96, 64, 3))
    samples = [*(Sample(text) for text in TEXTS), Sample(TEXTS[1], ramp, "Find it.")]
    return cases + sample_cases(checkpoint, model, samples)


def sample_cases(checkpoint: Checkpoint, model: Any, samples: Iterable[Sample]) -> list[Case]:
    """Run transformers on items as users have them."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, min_pixels=4096, max_pixels=1_843_200, do_rescale=False, do_normalize=False
    )
    cases = []
    for sample in samples:
        content = [{"type": "text", "text": sample.text}] if sample.text or sample.image is None else []
        pixels, grid = np.zeros((0, 1536), np.uint8), None
        if sample.image is not None:
            content.insert(0, {"type": "image"})
            processed = processor(sample.image)
            pixels, grid = processed["pixel_values"].astype(np.uint8), tuple(processed["image_grid_thw"][0][1:])
        prompt = checkpoint.render(sample.instruction, content)
        ids = tokenize(checkpoint, prompt.replace(checkpoint.image_token, checkpoint.image_token * (len(pixels) // 4)))
        cases.append(_case(f"text {sample.text[:20]!r}, image grid {grid}", checkpoint, model, ids, pixels, grid))
    return cases


def tokenize(checkpoint: Checkpoint, prompt: str) -> Array:
    """Encode a rendered prompt with the checkpoint's tokenizer and its post-processor, int64 (T,)."""
    return np.array(checkpoint.tokenizer(prompt)["input_ids"], np.int64)


def _case(
    name: str,
    checkpoint: Checkpoint,
    model: Any,
    ids: Array,
    pixels: Array,
    grid: tuple[int, int] | None,
) -> Case:
    input_ids = torch.from_numpy(ids)[None]
    grid_thw = torch.tensor([(1, *grid)] if grid else []).reshape(-1, 3).long()
    with torch.no_grad():
        if not grid:
            positions = torch.arange(len(ids)).expand(3, 1, -1)
            embeds = torch.zeros(0, checkpoint.image_embeds_size)
            states = model(input_ids=input_ids).last_hidden_state
        else:
            values = torch.from_numpy(pixels).float() / 127.5 - 1
            types = (input_ids == checkpoint.config.image_token_id).int()
            positions, _ = model.get_rope_index(input_ids, types, image_grid_thw=grid_thw)
            vision = model.visual(values, grid_thw=grid_thw)
            embeds = torch.cat([vision.pooler_output, *vision.deepstack_features], dim=1)
            model.rope_deltas = None
            states = model(
                input_ids=input_ids, pixel_values=values, image_grid_thw=grid_thw, mm_token_type_ids=types
            ).last_hidden_state
    return Case(
        name,
        ids,
        positions[:, 0].T.numpy().astype(np.int32),
        pixels.reshape(-1, 6144),
        grid_thw.numpy().astype(np.int32),
        embeds.numpy(),
        states[0, -1].numpy(),
    )


class Tower:
    """An exported tower that takes requests as the server would batch them."""

    def __init__(self, path: Path, names: tuple[str, ...], output: str, provider: str = CPU) -> None:
        self.path, self.names = path, names
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = provider == CPU  # as in configs/cuda.pbtxt
        if provider != CPU:
            onnxruntime.preload_dlls(directory="")  # CUDA's libraries, where pip installed them
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=[provider])
            if provider not in self.session.get_providers():  # onnxruntime goes on with the CPU
                raise RuntimeError(f"{provider} is not available")
        except Exception as error:  # onnxruntime raises half a dozen types of its own
            cure = "" if provider == CPU else f" If {provider} failed, as its log above says: ./scripts/install --gpu."
            raise ExportError(f"{path.name}: ONNX Runtime does not load the graph: {error}{cure}") from error
        wanted = [*names, *(f"{name}_offsets" for name in names)]
        found = [tensor.name for tensor in self.session.get_inputs()]
        if found != wanted or [tensor.name for tensor in self.session.get_outputs()] != [output]:
            raise ExportError(f"{path.parent.parent.name}: graph inputs are {found}; the config wants {wanted}.")

    def run(self, requests: list[Request]) -> Array:
        """Run one dynamic batch, the requests laid end to end."""
        try:
            return np.asarray(self.session.run(None, lay_out(requests))[0])
        except Exception as error:  # as above; a GPU that is too old, or too small
            raise ExportError(f"{self.path.name}: ONNX Runtime does not run the graph: {error}") from error


def runs_here(variant: Variant) -> bool:
    """Tell whether ONNX Runtime can run a variant's graphs on this machine."""
    if variant.provider not in onnxruntime.get_available_providers():
        return False
    return variant.provider == CPU or _has_cuda()


def _has_cuda() -> bool:
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


@dataclass(frozen=True)
class Examples:
    """All cases as requests to one tower, and what the reference makes of them."""

    requests: list[Request]
    rows: npt.NDArray[np.int64]  # of the output for all of them in one batch: the ones that are compared
    counts: list[int]  # of the first rows of a request's output that are compared
    expected: Array

    @classmethod
    def of_images(cls, cases: list[Case]) -> Examples:
        """Return those of the vision tower."""
        cases = [case for case in cases if len(case.grid_thw)]
        requests: list[Request] = [{"patches": case.patches, "grid_thw": case.grid_thw} for case in cases]
        expected = np.concatenate([case.image_embeds for case in cases])
        return cls(requests, np.arange(len(expected)), [len(case.patches) for case in cases], expected)

    @classmethod
    def of_items(cls, checkpoint: Checkpoint, cases: list[Case]) -> Examples:
        """Return those of the language tower; the second row of a request is the sentinel's."""
        requests = [_language_request(checkpoint, case) for case in cases]
        rows = np.cumsum([0, *(request["lengths"].size for request in requests)])[:-1]
        return cls(requests, rows, [1] * len(cases), np.stack([case.hidden_state for case in cases]))

    def in_torch(self, tower: torch.nn.Module) -> Array:
        """Return what a tower in PyTorch makes of them in one batch."""
        with torch.no_grad():
            batch = {name: torch.from_numpy(array) for name, array in lay_out(self.requests).items()}
            output: Array = tower(**batch).numpy()
        return output[self.rows]


def imitate(
    vision: torch.nn.Module, language: torch.nn.Module, checkpoint: Checkpoint, cases: list[Case], variant: Variant
) -> dict[str, float]:
    """Compare what a variant's precision makes of the towers with the reference, in PyTorch on this machine.

    For graphs that cannot run here. Of the cases only the short ones: bfloat16 is slow on most CPUs.

    Returns
    -------
    dict
        The smallest cosine of each tower.

    Raises
    ------
    ExportError
        A cosine is too small.
    """
    short = [case for case in cases if len(case.input_ids) <= MAX_IMITATED_TOKENS]
    report: dict[str, float] = {}
    for name, tower, examples in (
        ("vision_encoder", vision, Examples.of_images(short)),
        ("language_model", language, Examples.of_items(checkpoint, short)),
    ):
        name = f"{name}, {variant.name} in PyTorch"
        report |= agree(name, examples.in_torch(tower), examples.expected, variant.precision)
    return report


def lay_out(requests: list[Request]) -> Request:
    """Lay requests end to end, with the offsets that the server adds."""
    feed: Request = {}
    for name in requests[0]:
        parts = [request[name].reshape(-1) for request in requests]
        feed[name] = np.concatenate(parts)
        feed[f"{name}_offsets"] = np.cumsum([0, *(part.size for part in parts)], dtype=np.int32)
    return feed


def validate(
    repository: Path, checkpoint: Checkpoint, cases: list[Case], variant: Variant = VARIANTS["cpu"]
) -> dict[str, float]:
    """Compare a variant's graphs in `repository` with the reference.

    Returns
    -------
    dict
        The smallest cosine of each comparison.

    Raises
    ------
    ExportError
        A name, a shape or a value disagrees.
    """
    suffix = "" if variant.name == "cpu" else f", {variant.name}"
    images, items = Examples.of_images(cases), Examples.of_items(checkpoint, cases)
    vision = Tower(
        repository / "vision_encoder/1" / variant.graph, ("patches", "grid_thw"), "image_embeds", variant.provider
    )
    report, image_embeds = _validate_tower("vision_encoder" + suffix, vision, images, "grid_thw", variant.precision)
    del vision
    names = ("input_ids", "position_ids", "lengths", "image_embeds")
    language = Tower(repository / "language_model/1" / variant.graph, names, "pooled", variant.provider)
    its_report, _ = _validate_tower("language_model" + suffix, language, items, "lengths", variant.precision)
    report |= its_report
    parts = iter(np.split(image_embeds, np.cumsum(images.counts)[:-1]))
    as_served = [replace(case, image_embeds=next(parts)) if len(case.grid_thw) else case for case in cases]
    served = Examples.of_items(checkpoint, as_served)
    report |= agree(
        "both towers" + suffix, language.run(served.requests)[served.rows], served.expected, variant.precision
    )
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if checkpoint.name.rsplit("/", 1)[-1] == golden["checkpoint"].rsplit("/", 1)[-1]:
        report["golden" + suffix] = check_golden(checkpoint, language, golden)
    return report


def _validate_tower(
    name: str, tower: Tower, examples: Examples, inconsistent: str, precision: Precision
) -> tuple[dict[str, float], Array]:
    """Compare a graph with the reference, and every item alone with itself in a batch; return the latter, too."""
    together = tower.run(examples.requests)[examples.rows]
    report = agree(name, together, examples.expected, precision)
    alone = np.concatenate(
        [tower.run([request])[:count] for request, count in zip(examples.requests, examples.counts, strict=True)]
    )
    same = replace(precision, min_cosine=precision.min_alone, mean_cosine=precision.min_alone)
    report |= agree(f"{name} alone", alone, together, same)
    _check_guard(name, tower, examples.requests, inconsistent, precision.min_alone)
    return report, together


def _language_request(checkpoint: Checkpoint, case: Case) -> Request:
    """Return the tensors of a pack of one item, with the sentinel item if it has no image."""
    ids, positions, lengths, embeds = case.input_ids, case.position_ids, [len(case.input_ids)], case.image_embeds
    if not len(embeds):
        ids = np.append(ids, checkpoint.config.image_token_id)
        positions = np.concatenate([positions, np.zeros((1, 3), np.int32)])
        lengths, embeds = [*lengths, 1], np.zeros((1, checkpoint.image_embeds_size), np.float32)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "lengths": np.array(lengths, np.int32),
        "image_embeds": embeds,
    }


def _nearest_kept(ours: Array, theirs: Array, k: int = 5) -> float:
    """Return the share of the k nearest of each item among the others that are the same."""
    nearest = []
    for states in (ours, theirs):
        vectors = states / np.linalg.norm(states, axis=1, keepdims=True)
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(np.argsort(-similarity, axis=1)[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*nearest, strict=True)]))


def agree(name: str, ours: Array, theirs: Array, precision: Precision) -> dict[str, float]:
    """Return the smallest cosine between rows and, of integers, the mean.

    Raises
    ------
    DisagreementError
        One is too small for the precision.
    """
    if ours.shape != theirs.shape:
        raise ExportError(f"{name}: shape {ours.shape}, the reference has {theirs.shape}. The export is not placed.")
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / norms
    report = {name: float(cosines.min())}
    bounds = {name: precision.min_cosine}
    if precision.mean_cosine != precision.min_cosine:
        report[f"{name}, mean"], bounds[f"{name}, mean"] = float(cosines.mean()), precision.mean_cosine
    for what, cosine in report.items():
        if not cosine >= bounds[what]:
            raise DisagreementError(
                f"{what}: cosine {cosine:.6f} to the reference, at least {bounds[what]} is needed. Not placed."
            )
    return report


def _check_guard(name: str, tower: Tower, requests: list[Request], inconsistent: str, min_cosine: float) -> None:
    """Hold the tower to what it promises about bad requests.

    A request that contradicts itself gets NaN, and the others stay as they were. A request without elements in an input
    makes all of its batch NaN.
    """
    bad = {**requests[0], inconsistent: requests[0][inconsistent] + 2}
    expected, output = tower.run(requests), tower.run([bad, *requests])
    num_bad = len(output) - len(expected)
    distance = np.linalg.norm(output[num_bad:] - expected, axis=1)
    allowed = (2 * (1 - min_cosine)) ** 0.5 * np.linalg.norm(expected, axis=1) + 1e-3  # a sentinel's row may be 0
    if not np.isnan(output[:num_bad]).all() or not (distance <= allowed).all():
        raise ExportError(
            f"{name}: a request with wrong {inconsistent} is not answered with NaN, or harms its neighbours."
        )
    honest = requests[0]
    for empty in tower.names:
        bad = {**honest, empty: honest[empty][:0]}
        if not all(np.isnan(tower.run(batch)).all() for batch in ([bad, honest], [honest, bad])):
            raise ExportError(f"{name}: a batch in which a request has no {empty} is not answered with NaN alone.")


def check_golden(checkpoint: Checkpoint, language: Tower, golden: dict[str, Any]) -> float:
    """Compare with the published vectors of the real checkpoint, component by component; return the correlation."""
    correlations = []
    for item in golden["items"]:
        ids = tokenize(checkpoint, checkpoint.render(golden["instruction"], [{"type": "text", "text": item["text"]}]))
        nothing = np.zeros((0, checkpoint.image_embeds_size), np.float32)
        positions = np.repeat(np.arange(len(ids), dtype=np.int32)[:, None], 3, axis=1)
        case = Case(
            "golden", ids, positions, np.zeros((0, 6144), np.uint8), np.zeros((0, 3), np.int32), nothing, nothing
        )
        state = language.run([_language_request(checkpoint, case)])[0]
        theirs = np.array(item["embedding_prefix"])
        ours = (state / np.linalg.norm(state))[: len(theirs)]
        correlations.append(float(np.corrcoef(ours, theirs)[0, 1]))
        difference = float(np.abs(ours - theirs).max())
        if difference > MAX_GOLDEN_DIFFERENCE or correlations[-1] < MIN_GOLDEN_CORRELATION:
            raise ExportError(
                f"{checkpoint.name}: {item['text']!r} differs from the published vector by {difference:.4f} "
                f"(correlation {correlations[-1]:.4f}). Check the tokenizer's post-processor and the chat template."
            )
    return min(correlations)
