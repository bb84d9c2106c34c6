"""`ours` is what `build_loss` gives, `theirs` sentence-transformers' own losses: values, and vectors' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn
from transformers import AutoTokenizer

from finetune.losses import LossOptions, build_loss
from finetune.model import load_model

IMAGES = Path(__file__).resolve().parents[2] / "demo/images"
TEMPERATURE = 0.07
NUM_ROWS, SIZE = 7, 16
TOLERANCE = 1e-5  # float32, in another order
NO_MARGIN = 2.0  # more than two cosines can differ by


class Given(nn.Module):
    """A model whose vectors are given, so that their gradients can be read."""

    max_seq_length = 1

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        features["sentence_embedding"] = features["vectors"]
        return features

    def get_embedding_dimension(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Given:
        return self


def columns(num_negatives: int = 0, seed: int = 0) -> list[Tensor]:
    """Return anchors, positives near them, and negatives which are nearer than the positive for some."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(SIZE, generator=generator)
    anchors = centre + 0.4 * torch.randn(NUM_ROWS, SIZE, generator=generator)
    noise = torch.randn(1 + num_negatives, NUM_ROWS, SIZE, generator=generator)
    return [anchors, *(anchors + noise)]


def value_and_gradients(
    losses: Sequence[tuple[nn.Module, Sequence[int]]], vectors: Sequence[Tensor], labels: Tensor | None = None
) -> list[Tensor]:
    """Return the mean of some losses, each of some columns, and the gradient of every column."""
    leaves = [column.clone().requires_grad_() for column in vectors]
    values = [loss([{"vectors": leaves[index]} for index in indexes], labels) for loss, indexes in losses]
    total = torch.stack(values).mean()
    total.backward()
    return [total.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def mine(options: LossOptions, vectors: Sequence[Tensor], labels: Tensor | None = None) -> list[Tensor]:
    model: Any = Given()
    return value_and_gradients([(build_loss(model, options), range(len(vectors)))], vectors, labels)


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    assert all(gradient.abs().max() > 10 * TOLERANCE for gradient in theirs[1:])


def infonce(name: str, directions: str, margin: float | None = None, **options: Any) -> LossOptions:
    settings: dict[str, Any] = {"name": name, "directions": directions, "false_negative_margin": margin, **options}
    return LossOptions(temperature=TEMPERATURE, cached_batch_size=3, **settings)  # 7 rows in 3 + 3 + 1


names = pytest.mark.parametrize("name", ["infonce", "cached-infonce"])
negatives = pytest.mark.parametrize("num_negatives", [0, 1, 3])


@names
@negatives
@pytest.mark.parametrize("margin", [None, NO_MARGIN])
def test_infonce_forward(name: str, num_negatives: int, margin: float | None) -> None:
    vectors = columns(num_negatives)
    theirs = MultipleNegativesRankingLoss(Given(), scale=1 / TEMPERATURE)  # type: ignore[arg-type]
    assert_same(
        mine(infonce(name, "forward", margin), vectors),
        value_and_gradients([(theirs, range(len(vectors)))], vectors),
    )


@names
@negatives
@pytest.mark.parametrize("margin", [None, NO_MARGIN])
def test_infonce_of_both_directions_is_the_mean_of_the_two(name: str, num_negatives: int, margin: float | None) -> None:
    vectors = columns(num_negatives)
    theirs = MultipleNegativesRankingLoss(Given(), scale=1 / TEMPERATURE)  # type: ignore[arg-type]
    both = [(theirs, range(len(vectors))), (theirs, [1, 0])]  # negatives have no way back
    assert_same(mine(infonce(name, "both", margin), vectors), value_and_gradients(both, vectors))


def gist(tokenizer: Any, margin: float) -> GISTEmbedLoss:
    """Return the loss of a model that guides itself."""
    model: Any = Given()
    model.tokenizer = tokenizer
    options: dict[str, Any] = {"contrast_anchors": False, "contrast_positives": False}
    return GISTEmbedLoss(model, model, temperature=TEMPERATURE, margin=-margin, **options)


@names
@pytest.mark.parametrize("num_negatives", [0, 1])  # GISTEmbed takes no more
@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("directions", ["forward", "both"])
def test_the_false_negative_margin(
    name: str, num_negatives: int, margin: float, directions: str, tiny_checkpoint: Path
) -> None:
    vectors = columns(num_negatives)
    theirs = gist(AutoTokenizer.from_pretrained(tiny_checkpoint), margin)
    parts: list[tuple[nn.Module, Sequence[int]]] = [(theirs, range(len(vectors))), (theirs, [1, 0])]
    expected = value_and_gradients(parts if directions == "both" else parts[:1], vectors)
    assert_same(mine(infonce(name, directions, margin), vectors), expected)
    without = mine(infonce(name, directions), vectors)
    assert without[0] > expected[0] + 0.01  # some were left out


def test_the_positive_is_never_left_out() -> None:
    anchors = torch.eye(3, SIZE)
    value = mine(infonce("infonce", "both", 0.0), [anchors, -anchors])[0]  # every negative is nearer
    assert value == 0  # nothing is left to tell the positive from


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_triplet(margin: float) -> None:
    vectors = columns(1)
    options = LossOptions("triplet", triplet_margin=margin)
    model: Any = Given()
    theirs = TripletLoss(model, TripletDistanceMetric.COSINE, triplet_margin=margin)
    assert_same(mine(options, vectors), value_and_gradients([(theirs, range(3))], vectors))


def test_triplet_is_the_hinge_of_cosine_distances() -> None:
    anchors, positives, negatives_ = columns(1)
    cosine = torch.nn.functional.cosine_similarity
    theirs = (cosine(anchors, negatives_) - cosine(anchors, positives) + 0.3).relu().mean()
    torch.testing.assert_close(mine(LossOptions("triplet"), [anchors, positives, negatives_])[0], theirs)


def test_cosent() -> None:
    vectors, labels = columns(), torch.tensor([0.9, 0.1, 0.5, 0.5, 0.0, 1.0, 0.3])
    model: Any = Given()
    theirs = value_and_gradients([(CoSENTLoss(model, scale=1 / TEMPERATURE), [0, 1])], vectors, labels)
    assert_same(mine(LossOptions("cosent", temperature=TEMPERATURE), vectors, labels), theirs)


def test_cosent_is_of_pairs_in_the_wrong_order() -> None:
    vectors, labels = columns(), torch.tensor([0.9, 0.1, 0.5, 0.5, 0.0, 1.0, 0.3])
    cosines = torch.nn.functional.cosine_similarity(*vectors) / TEMPERATURE
    gaps = [cosines[low] - cosines[high] for low in range(7) for high in range(7) if labels[low] < labels[high]]
    theirs = torch.logsumexp(torch.stack([torch.zeros(()), *gaps]), 0)
    torch.testing.assert_close(mine(LossOptions("cosent", temperature=TEMPERATURE), vectors, labels)[0], theirs)


@pytest.mark.parametrize("dimensions", [(4, 8), (8, SIZE, 4)])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(infonce("infonce", "both"), id="infonce"),
        pytest.param(infonce("infonce", "both", 0.1), id="infonce with a margin"),
        pytest.param(infonce("cached-infonce", "both"), id="cached"),
        pytest.param(infonce("cached-infonce", "both", 0.1), id="cached with a margin"),
        pytest.param(LossOptions("triplet", triplet_margin=1.0), id="triplet"),
        pytest.param(LossOptions("cosent", temperature=TEMPERATURE), id="cosent"),
    ],
)
def test_matryoshka_is_the_sum_over_truncated_vectors(options: LossOptions, dimensions: tuple[int, ...]) -> None:
    is_scored = options.name == "cosent"
    labels = torch.linspace(0, 1, NUM_ROWS) if is_scored else None
    vectors = columns(0 if is_scored else 1)
    theirs = [torch.zeros(()), *map(torch.zeros_like, vectors)]
    for size in (SIZE, 8, 4):
        value, *gradients = mine(options, [column[:, :size] for column in vectors], labels)
        theirs[0] += value
        for total, gradient in zip(theirs[1:], gradients, strict=True):
            total[:, :size] += gradient
    matryoshka = LossOptions(**{**vars(options), "matryoshka": dimensions})
    ours = mine(matryoshka, vectors, labels)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


def of_model(model: SentenceTransformer, options: LossOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of texts with images, some of them alone, and the gradient of every weight that has one."""
    encoder: Any = model[0]
    images = [str(IMAGES / f"{name}.png") for name in ("dog", "tree", "fish", "house", "rocket")]
    texts = ["ein Hund", "a tall green tree", "魚", "casa", "una fusée"]
    named = zip(["", texts[1], "", texts[3], ""], images, strict=True)
    pairs = [{"text": text, "image": image} for text, image in named]
    loss = build_loss(model, options)
    model.zero_grad()
    value = loss([encoder.preprocess(texts), encoder.preprocess(pairs), encoder.preprocess(texts[::-1])], None)
    value.backward()
    weights = encoder.whole.named_parameters()
    return value.detach(), {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}


@pytest.mark.parametrize("margin", [None, 0.001])
@pytest.mark.parametrize("matryoshka", [(), (32,)])
def test_cached_infonce_is_infonce_on_a_model(
    margin: float | None, matryoshka: tuple[int, ...], tiny_checkpoint: Path
) -> None:
    model = load_model(tiny_checkpoint, max_pixels=4096)
    value, gradients = of_model(model, infonce("cached-infonce", "both", margin, matryoshka=matryoshka))
    expected, theirs = of_model(model, infonce("infonce", "both", margin, matryoshka=matryoshka))
    torch.testing.assert_close(value, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert gradients.keys() == theirs.keys()
    assert any("visual.patch_embed" in name for name in theirs)
    torch.testing.assert_close(gradients, theirs, atol=1e-4, rtol=1e-3)
