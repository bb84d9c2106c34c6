"""An export is done when it agrees: the ONNX towers against transformers' own forward pass.

The reference runs first, on random and on rendered inputs; then, with its memory given back, the graphs run on the same
inputs: all items in one packed batch, and each alone.

Letters: n items, T tokens, V visual tokens, C = 1 + DeepStack features, D hidden size.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from transformers import Qwen2VLImageProcessorPil

from settings import DEFAULT_INSTRUCTION

from .checkpoint import Checkpoint, ExportError
from .variants import VARIANTS, Variant

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
    ramp = np.linspace(0, 255, 96 * 64 * 3, dtype=np.uint8).reshape(96, 64, 3)
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, min_pixels=4096, max_pixels=1_843_200, do_rescale=False, do_normalize=False
    )
    pixels = processor(ramp)["pixel_values"].astype(np.uint8)
    for text in TEXTS:
        ids = tokenize(checkpoint, checkpoint.render(DEFAULT_INSTRUCTION, [{"type": "text", "text": text}]))
        cases.append(_case(f"text {text[:20]!r}", checkpoint, model, ids, pixels[:0], None))
    prompt = checkpoint.render("Find it.", [{"type": "image"}, {"type": "text", "text": TEXTS[1]}])
    ids = tokenize(checkpoint, prompt.replace(checkpoint.image_token, checkpoint.image_token * (len(pixels) // 4)))
    cases.append(_case("image and text", checkpoint, model, ids, pixels, (6, 4)))
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
    with_image = [case for case in short if len(case.grid_thw)]
    images: list[Request] = [{"patches": case.patches, "grid_thw": case.grid_thw} for case in with_image]
    texts = [_language_request(checkpoint, case) for case in short]
    with torch.no_grad():
        image_embeds, states = (
            tower(**{name: torch.from_numpy(array) for name, array in lay_out(requests).items()}).numpy()
            for tower, requests in ((vision, images), (language, texts))
        )
    first_rows = np.cumsum([0, *(request["lengths"].size for request in texts)])[:-1]
    expected = np.concatenate([case.image_embeds for case in with_image])
    name = f"{variant.name} in PyTorch"
    return {
        f"vision_encoder, {name}": _agree(
            f"vision_encoder, {name}", image_embeds, expected, variant.precision.min_cosine
        ),
        f"language_model, {name}": _agree(
            f"language_model, {name}",
            states[first_rows],
            np.stack([case.hidden_state for case in short]),
            variant.precision.min_cosine,
        ),
    }


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
    report = {}
    suffix = "" if variant.name == "cpu" else f", {variant.name}"

    def agree(name: str, ours: Array, theirs: Array) -> None:
        report[name + suffix] = _agree(name + suffix, ours, theirs, variant.precision.min_cosine)

    with_image = [case for case in cases if len(case.grid_thw)]
    vision = Tower(
        repository / "vision_encoder/1" / variant.graph, ("patches", "grid_thw"), "image_embeds", variant.provider
    )
    requests: list[Request] = [{"patches": case.patches, "grid_thw": case.grid_thw} for case in with_image]
    expected = np.concatenate([case.image_embeds for case in with_image])
    together = vision.run(requests)
    agree("vision_encoder", together, expected)
    alone = np.concatenate([vision.run([request]) for request in requests])
    agree("vision_encoder alone", alone, together)
    _check_guard("vision_encoder" + suffix, vision, requests, "grid_thw", variant.precision.min_cosine)
    del vision

    names = ("input_ids", "position_ids", "lengths", "image_embeds")
    language = Tower(repository / "language_model/1" / variant.graph, names, "pooled", variant.provider)
    requests = [_language_request(checkpoint, case) for case in cases]
    first_rows = np.cumsum([0, *(request["lengths"].size for request in requests)])[:-1]  # the sentinels come second
    together = language.run(requests)[first_rows]
    expected = np.stack([case.hidden_state for case in cases])
    agree("language_model", together, expected)
    alone = np.stack([language.run([request])[0] for request in requests])
    agree("language_model alone", alone, together)
    _check_guard("language_model" + suffix, language, requests, "lengths", variant.precision.min_cosine)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if checkpoint.name.rsplit("/", 1)[-1] == golden["checkpoint"].rsplit("/", 1)[-1]:
        report["golden" + suffix] = check_golden(checkpoint, language, golden)
    return report


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


def _agree(name: str, ours: Array, theirs: Array, min_cosine: float) -> float:
    """Return the smallest cosine between rows, or refuse."""
    if ours.shape != theirs.shape:
        raise ExportError(f"{name}: shape {ours.shape}, the reference has {theirs.shape}. The export is not placed.")
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(axis=1) / norms).min())
    if not cosine >= min_cosine:
        raise ExportError(f"{name}: cosine {cosine:.6f} to the reference, at least {min_cosine} is needed. Not placed.")
    return cosine


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
