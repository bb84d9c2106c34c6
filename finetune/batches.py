"""Which rows share a batch, and whether batches of these rows have anything to learn. Knows rows; loads no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

from finetune.losses import LossName

NOT_SIDES = ("group", "score")


class GroupBatchSampler(DefaultBatchSampler):
    """Batches of one kind of row, in which no two rows are of the same group.

    Rows of a group are never taken for each other's negatives; and where all rows of a batch pair, say, an image with
    a text, no negative is told from the positive by being of the other kind. The rows of a kind, group after group in
    a random order, are dealt to its batches in turn. Every epoch has the same number of batches and its own order,
    which depends on seed and epoch alone.
    """

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, seed: int = 0, **_: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed)
        groups = dataset["group"] if "group" in dataset.column_names else [""] * len(dataset)
        kinds: dict[tuple[bool, ...], dict[str, list[int]]] = {}
        sides = [dataset[name] for name in dataset.column_names if name not in NOT_SIDES]
        for row, (group, *row_sides) in enumerate(zip(groups, *sides, strict=True)):
            kind = tuple(bool(side[part]) for side in row_sides for part in ("text", "image"))
            kinds.setdefault(kind, {}).setdefault(group or f"row {row}", []).append(row)
        self._kinds = [list(rows_of.values()) for rows_of in kinds.values()]

    def _num_batches(self, groups: list[list[int]]) -> int:
        return max(-(-sum(map(len, groups)) // self.batch_size), *map(len, groups))

    def __len__(self) -> int:
        return sum(map(self._num_batches, self._kinds))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)

        def shuffled(things: list[Any]) -> list[Any]:
            return [things[i] for i in torch.randperm(len(things), generator=generator).tolist()]

        batches = []
        for groups in self._kinds:
            dealt = [row for group in shuffled(groups) for row in shuffled(group)]
            num_batches = self._num_batches(groups)
            batches += [dealt[start::num_batches] for start in range(num_batches)]
        yield from shuffled(batches)


def nothing_to_learn(rows: Dataset, loss: LossName, batch_size: int) -> str:
    """Say why no batch of these rows has a gradient; "" if one may have.

    InfoNCE tells a row's positive from the negatives of the row and from the positives of its batch, triplet from the
    row's negative; CoSENT orders pairs of a batch with different scores. Without groups, no side is twice in a batch.
    """
    if loss == "cosent" and len(set(rows["score"])) == 1:
        return f"every score is {rows['score'][0]:g}, so no pair should be nearer than another. Add other scores"
    has_negatives = "negative_1" in rows.column_names
    if has_negatives and any(negative != row[1] for row in _sides(rows) for negative in row[2:]):
        return ""
    if loss == "triplet":
        return "every negative is the positive of its row. Choose other negatives"
    first = next(_sides(rows))
    if all(sides == first for sides in _sides(rows)):
        what = "there is only one row" if len(rows) == 1 else f"all {len(rows)} rows are equal"
        return f"{what}, and nothing to tell it from. Add other rows"
    if batch_size == 1:
        return "batch_size is 1, and a row has nothing to be told from. Raise it"
    if "group" in rows.column_names:
        positives = rows["positive"]
        batches = GroupBatchSampler(rows, batch_size, drop_last=False)
        if all(positives[row] == positives[batch[0]] for batch in batches for row in batch):
            return "the groups leave no batch with two different positives. Make groups smaller, or add other rows"
    elif _common_side(rows):
        return "one side is in every row and never twice in a batch, so each batch has one row. Add other rows"
    return ""


def _sides(rows: Dataset) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield the sides of each row; as a rule, the first rows suffice."""
    names = [name for name in rows.column_names if name not in NOT_SIDES]
    for row in rows.select_columns(names):
        yield tuple(tuple(row[name].values()) for name in names)


def _common_side(rows: Dataset) -> bool:
    common = set(next(_sides(rows)))
    for sides in _sides(rows):
        common.intersection_update(sides)
        if not common:
            return False
    return True
