"""`ours` is what is trained and evaluated, `theirs` transformers alone, an item at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import finetune.model
from export.checkpoint import Checkpoint
from finetune.model import CheckpointError, Qwen3VLEncoder, find_checkpoint, load_model
from finetune.sides import Side
from preprocessing import PackError
from tests.reference import Reference
from tests.samples import INSTRUCTIONS, TEXTS, image

MAX_PIXELS = 16384  # images here are up to four times as large
TOLERANCE = 1e-5  # float32 on both sides, in another order
SIZES = {"square": (64, 64), "square too": (64, 64), "wide": (160, 64), "tall": (64, 128), "large": (400, 300)}


def side(text: str = "", image: Path | str = "", instruction: str = "") -> Side:
    return {"text": text, "image": str(image), "instruction": instruction}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write an image of each of `SIZES`."""
    paths = {name: tmp_path_factory.mktemp("images") / f"{name}.png" for name in SIZES}
    for seed, (name, path) in enumerate(paths.items()):
        image(*SIZES[name], mode="RGBA" if name == "tall" else "RGB", seed=seed).save(path)
    return paths


@pytest.fixture
def encoder(checkpoint: Checkpoint) -> Qwen3VLEncoder:
    return Qwen3VLEncoder(checkpoint.folder, max_pixels=MAX_PIXELS)


def encode(checkpoint: Path, sides: list[Any], **options: Any) -> np.ndarray:
    model: Any = load_model(checkpoint, max_pixels=MAX_PIXELS)
    return np.asarray(model.encode(sides, show_progress_bar=False, **options))


def of_reference(reference: Reference, sides: list[Side]) -> np.ndarray:
    vectors = []
    for item in sides:
        picture = Image.open(item["image"]) if item["image"] else None
        vectors.append(reference.embed(item["text"], picture, item["instruction"], max_pixels=MAX_PIXELS))
    return np.stack(vectors)


def mixed(images: dict[str, Path]) -> list[Side]:
    """Return texts, images of several sizes and both, with instructions, in no order of length."""
    return [
        side("A photograph of a golden retriever puppy on a red sofa, at sunset, in front of the Eiffel Tower."),
        side(image=images["tall"]),
        side("a"),
        side("Two cats", images["square"], "Retrieve images or text relevant to the user's query."),
        side(image=images["large"]),
        side("向量检索", instruction="找到它"),
        side(image=images["square too"], instruction="Find it"),
        side("On the sofa.", images["wide"]),
    ]


@pytest.mark.parametrize("size", ["tiny", "deep", "wide"])
def test_a_mixed_batch_against_transformers(
    size: str, checkpoint_of: Callable[[str], Checkpoint], images: dict[str, Path]
) -> None:
    checkpoint = checkpoint_of(size)
    ours = encode(checkpoint.folder, mixed(images))
    theirs = of_reference(Reference(checkpoint), mixed(images))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert np.abs(np.diff(theirs, axis=0)).max(1).min() > 100 * TOLERANCE  # none could pass for another


def test_texts_against_transformers(checkpoint: Checkpoint, reference: Reference) -> None:
    sides = [side(text) for name, text in TEXTS.items() if name != "empty"]
    np.testing.assert_allclose(encode(checkpoint.folder, sides), of_reference(reference, sides), atol=TOLERANCE)


def test_a_bare_string_is_a_text(checkpoint: Checkpoint, reference: Reference) -> None:
    ours = encode(checkpoint.folder, ["a red apple", "ein roter Apfel"])
    np.testing.assert_allclose(
        ours, of_reference(reference, [side("a red apple"), side("ein roter Apfel")]), atol=TOLERANCE
    )


def test_instructions_against_transformers(
    checkpoint: Checkpoint, reference: Reference, images: dict[str, Path]
) -> None:
    sides = [side("a cat", images["square"], instruction) for instruction in INSTRUCTIONS]
    np.testing.assert_allclose(encode(checkpoint.folder, sides), of_reference(reference, sides), atol=TOLERANCE)


def test_a_prompt_is_the_instruction_of_sides_without_one(checkpoint: Checkpoint, reference: Reference) -> None:
    ours = encode(checkpoint.folder, [side("a cat"), side("a cat", instruction="Why?")], prompt="Find it")
    theirs = of_reference(reference, [side("a cat", instruction="Find it"), side("a cat", instruction="Why?")])
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["square", "square too", "square"], id="one size"),
        pytest.param(["square", "wide", "tall", "square too", "large"], id="several sizes"),
    ],
)
def test_images_in_one_batch_against_transformers(
    names: list[str], checkpoint: Checkpoint, reference: Reference, images: dict[str, Path]
) -> None:
    sides = [side(image=images[name]) for name in names]
    np.testing.assert_allclose(encode(checkpoint.folder, sides), of_reference(reference, sides), atol=TOLERANCE)


def test_batch_equals_single(checkpoint: Checkpoint, images: dict[str, Path]) -> None:
    together = encode(checkpoint.folder, mixed(images))
    alone = encode(checkpoint.folder, mixed(images), batch_size=1)
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)


def test_a_batch_in_parts_is_the_batch(
    encoder: Qwen3VLEncoder, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = [*mixed(images), *[side(image=images["wide"])] * 2, *[side("a cat")] * 2]  # parts of all kinds
    with torch.no_grad():
        whole = encoder(encoder.preprocess(sides))["sentence_embedding"]
        monkeypatch.setattr(finetune.model, "ROWS_AT_A_TIME", 2)
        in_parts = encoder(encoder.preprocess(sides))["sentence_embedding"]
    torch.testing.assert_close(in_parts, whole, atol=TOLERANCE, rtol=TOLERANCE)


def test_unit_vectors(checkpoint: Checkpoint, images: dict[str, Path]) -> None:
    norms = np.linalg.norm(encode(checkpoint.folder, mixed(images)), axis=1)
    np.testing.assert_allclose(norms, 1, atol=TOLERANCE)


def gradients(encoder: Qwen3VLEncoder, sides: list[Side]) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss in which every number of every vector has its own weight."""
    vectors = torch.nn.functional.normalize(encoder(encoder.preprocess(sides))["sentence_embedding"])
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    encoder.zero_grad()
    (vectors * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in encoder.whole.named_parameters() if weight.grad is not None}


def test_gradients_do_not_depend_on_the_shared_prefix(
    encoder: Qwen3VLEncoder, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = encoder.preprocess(mixed(images)[:2])
    assert encoder._num_shared(features["input_ids"], features["attention_mask"].sum(1)) > 3  # there is one
    sides = [side("a cat"), side("two cats on the sofa"), side(image=images["wide"]), side("a", images["square"])]
    ours = gradients(encoder, sides)
    monkeypatch.setattr(encoder, "_num_shared", lambda *_: 0)
    theirs = gradients(encoder, sides)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(encoder: Qwen3VLEncoder, images: dict[str, Path]) -> None:
    calls = []
    encoder.model.language_model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    encoder.train()
    theirs = gradients(encoder, mixed(images))
    num_calls = len(calls)
    encoder.checkpoints_gradients = True
    encoder.whole.activation_checkpointing_enable({"use_reentrant": False})
    calls.clear()
    ours = gradients(encoder, mixed(images))
    assert (num_calls, len(calls)) == (2, 2)  # prefix and rest; without a prefix, once more on the way back
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-3)


def test_bad_sides_are_refused_all_at_once(encoder: Qwen3VLEncoder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"%PDF-1.7")
    with pytest.raises(PackError) as error:
        encoder.preprocess([side(image=tmp_path / "broken.png"), side("a"), side(image=tmp_path / "broken.png")])
    assert [item["index"] for item in json.loads(str(error.value).partition("\n")[2])["items"]] == [0, 2]


def copy(checkpoint: Checkpoint, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint.folder, folder / "copy"))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is neither a folder nor a model that the hub gives"):
        load_model(tmp_path / "missing")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_refused(file: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy(checkpoint, tmp_path)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing. Pass a complete"):
        find_checkpoint(str(folder))


def test_another_architecture_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = copy(checkpoint, tmp_path) / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"qwen3_vl"', '"qwen2_vl"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="model_type is 'qwen2_vl'; only 'qwen3_vl' can be fine-tuned"):
        load_model(config.parent)


def test_missing_tensors_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.visual.merger.norm.weight"], tensors["model.language_model.norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"2 tensors are missing \(model.language_model.norm.weight, ...\)"):
        load_model(path.parent)


def test_missing_weights_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path) / "model.safetensors"
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(path.parent)


def test_broken_weights_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = copy(checkpoint, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(path.parent)
