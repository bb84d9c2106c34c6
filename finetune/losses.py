"""Which loss: sentence-transformers' own, with a false-negative margin for InfoNCE, which it lacks.

Knows vectors and rows of a batch; knows nothing of texts or images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor, nn

LossName = Literal["infonce", "cached-infonce", "triplet", "cosent"]


@dataclass(frozen=True)
class LossOptions:
    """What the loss is; the defaults suit pairs of text and image."""

    name: LossName = "infonce"
    temperature: float = 0.02  # InfoNCE and CoSENT: similarities are divided by it
    directions: Literal["both", "forward"] = "both"  # anchor to positive, and also positive to anchor
    false_negative_margin: float | None = None  # InfoNCE: leave out negatives this much nearer than the positive
    triplet_margin: float = 0.3  # of cosine distances
    matryoshka: tuple[int, ...] = ()  # dimensions that are trained beside the full size
    cached_batch_size: int = 32  # cached InfoNCE: items that are in memory at a time


class MarginInfoNCE(MultipleNegativesRankingLoss):
    """InfoNCE that leaves out negatives which are likely positives.

    A negative is left out of its row's softmax when its cosine is above that of the row's positive plus `margin`, as
    in the training of Qwen3-Embedding (arXiv 2506.05176, equation 2; 0.1 there).

    Parameters
    ----------
    margin
        0 or more; 2 leaves nothing out, and is `MultipleNegativesRankingLoss`.
    others
        Of the base class: scale (1 / temperature), directions. One process only: nothing is gathered.
    """

    def __init__(self, model: SentenceTransformer, *, margin: float, **options: Any) -> None:
        super().__init__(model, partition_mode="per_direction", **options)
        self.margin = margin

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Any) -> Tensor:
        """Return the mean loss of anchors (n, D), their positives (n, D) and their negatives (n, D) each."""
        anchors, positives = embeddings[0], embeddings[1]
        forward = self.similarity_fct(anchors, torch.cat(embeddings[1:]))  # (n, n * documents)
        rows = [forward] if self.directions == ("query_to_doc",) else [forward, self.similarity_fct(positives, anchors)]
        target = torch.arange(len(anchors), device=anchors.device)
        limit = forward.detach().diagonal()[:, None] + self.margin  # (n, 1)
        losses = []
        for similarities in rows:
            likely_positive = similarities.detach() > limit
            likely_positive[target, target] = False
            scores = similarities.masked_fill(likely_positive, -torch.inf) * self.scale
            losses.append(nn.functional.cross_entropy(scores, target))
        return torch.stack(losses).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return {**super().get_config_dict(), "margin": self.margin}


class CachedMarginInfoNCE(CachedMultipleNegativesRankingLoss):
    """`MarginInfoNCE` over a batch that is embedded in parts, with sentence-transformers' gradient cache."""

    def __init__(self, model: SentenceTransformer, *, margin: float, mini_batch_size: int, **options: Any) -> None:
        super().__init__(model, mini_batch_size=mini_batch_size, partition_mode="per_direction", **options)
        self.loss: MarginInfoNCE = MarginInfoNCE(model, margin=margin, **options)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of the whole batch, after its backward pass into the vectors where that is asked for."""
        loss = self.loss.compute_loss_from_embeddings([torch.cat(parts) for parts in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def build_loss(model: SentenceTransformer, options: LossOptions) -> nn.Module:
    """Return the loss that `options` describe, on vectors of `model`."""
    scale = 1 / options.temperature
    infonce: dict[str, Any] = {
        "scale": scale,
        "directions": ("query_to_doc", "doc_to_query") if options.directions == "both" else ("query_to_doc",),
    }
    margin = options.false_negative_margin
    losses: dict[LossName, Callable[[], nn.Module]] = {
        "infonce": lambda: (
            MultipleNegativesRankingLoss(model, partition_mode="per_direction", **infonce)
            if margin is None
            else MarginInfoNCE(model, margin=margin, **infonce)
        ),
        "cached-infonce": lambda: (
            CachedMultipleNegativesRankingLoss(
                model, partition_mode="per_direction", mini_batch_size=options.cached_batch_size, **infonce
            )
            if margin is None
            else CachedMarginInfoNCE(model, margin=margin, mini_batch_size=options.cached_batch_size, **infonce)
        ),
        "triplet": lambda: TripletLoss(model, TripletDistanceMetric.COSINE, triplet_margin=options.triplet_margin),
        "cosent": lambda: CoSENTLoss(model, scale=scale, similarity_fct=pairwise_cos_sim),
    }
    loss = losses[options.name]()
    if options.matryoshka:
        encoder: Any = model[0]
        full = encoder.get_embedding_dimension()
        loss = MatryoshkaLoss(model, loss, matryoshka_dims=sorted({full, *options.matryoshka}, reverse=True))
    return loss
