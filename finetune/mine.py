"""Hard negatives: `python -m finetune.mine --checkpoint C --data pairs.jsonl --output mined.jsonl`.

For every row, what the model finds near its anchor among the positives of all rows and an optional corpus, texts and
images alike. Never a candidate: the anchor itself, a positive of the same anchor (under whatever instruction), or a
side of a row of the same group. sentence-transformers' `mine_hard_negatives` knows no groups and leaves rows out
without naming them; its options are here under its names.

Letters: n rows, C candidates, D hidden size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Literal, get_args

import torch
from sentence_transformers import SentenceTransformer

from finetune.data import BadRow, DataError, OnError, Row, listing, parse_rows, read_sides
from finetune.interrupts import interruptible
from finetune.model import CheckpointError, load_model, open_preprocessor
from finetune.paths import local_path
from finetune.sides import Side, side_to_json

Sampling = Literal["top", "random"]
Content = tuple[str, str]  # text and image: two sides that differ in the instruction alone are one candidate

MAX_SCORES = 2**26  # that are in memory at a time: 256 MiB


class MiningError(Exception):
    """Mining cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class MiningOptions:
    """Which candidates become negatives."""

    num_negatives: int = 3  # of every row
    range_min: int = 0  # the nearest candidates that are passed over
    range_max: int = 50  # the nearest candidates that are looked at, those passed over included
    absolute_margin: float | None = None  # a negative's cosine is at least this much below the positive's
    relative_margin: float | None = None  # the same, as a share of the positive's cosine
    max_score: float | None = None  # a negative's cosine is at most this
    sampling: Sampling = "top"  # of what is left: the nearest, or any
    seed: int = 0  # of "random"

    def __post_init__(self) -> None:
        if self.num_negatives < 1 or self.range_min < 0 or self.range_max - self.range_min < self.num_negatives:
            raise MiningError(
                f"{self.num_negatives} negatives of the candidates from {self.range_min} to {self.range_max} are "
                "impossible. Ask for at least 1, and for a range that holds as many."
            )


def mine(
    rows: Sequence[Row], corpus: Iterable[Side], model: SentenceTransformer, options: MiningOptions, *, batch_size: int
) -> list[list[Side]]:
    """Find the negatives of contrastive rows.

    Parameters
    ----------
    rows
        With anchor and positive.
    corpus
        Candidates beside the positives.
    model
        What `load_model` gives.
    batch_size
        Sides that are encoded at a time.

    Returns
    -------
    list of list of Side
        Of each row, nearest first; fewer than `num_negatives` where the options leave no more.
    """
    candidates: dict[Content, Side] = {}
    for side in [*(row.sides[1] for row in rows), *corpus]:
        candidates.setdefault(_content(side), side)
    columns = {content: column for column, content in enumerate(candidates)}
    sides = [*(side for row in rows for side in row.sides[:2]), *candidates.values()]
    vectors = _encode(sides, model, batch_size)  # (2n + C, D)
    anchors, positives = vectors[: 2 * len(rows) : 2], vectors[1 : 2 * len(rows) : 2]
    found = search(anchors, positives, vectors[2 * len(rows) :], _relatives(rows, columns), options)
    listed = list(candidates.values())
    return [[listed[column] for column in row] for row in found]


def search(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    candidates: torch.Tensor,
    relatives: Sequence[Sequence[torch.Tensor]],
    options: MiningOptions,
) -> list[list[int]]:
    """Find the nearest candidates of each anchor that are no relatives and stay within the options.

    Parameters
    ----------
    anchors, positives
        (n, D), unit vectors.
    candidates
        (C, D), unit vectors.
    relatives
        Of each anchor, the candidates that count as positives, int64 in one or more tensors.

    Returns
    -------
    list of list of int
        Candidates of each anchor, nearest first, at most `num_negatives`.
    """
    positive_scores = (anchors * positives).sum(1, keepdim=True)  # (n, 1)
    limits = torch.full_like(positive_scores, torch.inf if options.max_score is None else options.max_score)
    if options.absolute_margin is not None:
        limits = limits.minimum(positive_scores - options.absolute_margin)
    if options.relative_margin is not None:
        limits = limits.minimum(positive_scores - positive_scores.abs() * options.relative_margin)
    generator = torch.Generator().manual_seed(options.seed)
    found: list[list[int]] = []
    step = max(1, MAX_SCORES // len(candidates))
    for start in range(0, len(anchors), step):
        scores = anchors[start : start + step] @ candidates.T  # (step, C)
        for row, tensors in zip(scores, relatives[start : start + step], strict=True):
            for tensor in tensors:
                row[tensor] = -torch.inf
        nearest = scores.topk(min(options.range_max, len(candidates)))  # (step, range_max), relatives last
        allowed = (nearest.values > -torch.inf) & (nearest.values <= limits[start : start + step])
        allowed[:, : options.range_min] = False
        for columns, mask in zip(nearest.indices.cpu(), allowed.cpu(), strict=True):
            left = columns[mask]
            if options.sampling == "random":
                left = left[torch.randperm(len(left), generator=generator)[: options.num_negatives].sort().values]
            found.append(left[: options.num_negatives].tolist())
    return found


def write_rows(path: Path, rows: Iterable[Row], negatives: Iterable[Sequence[Side]]) -> None:
    """Write rows with their negatives, all or nothing; paths of images are relative to the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.unfinished")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            for row, found in zip(rows, negatives, strict=True):
                anchor, positive, *written = (side_to_json(side, path.parent) for side in [*row.sides, *found])
                value = {"anchor": anchor, "positive": positive, "negatives": written}
                file.write(json.dumps(value | ({"group": row.group} if row.group else {}), ensure_ascii=False) + "\n")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _content(side: Side) -> Content:
    return side["text"], side["image"]


def _encode(sides: Sequence[Side], model: SentenceTransformer, batch_size: int) -> torch.Tensor:
    """Encode each different side once."""
    keys = [(side["text"], side["image"], side["instruction"]) for side in sides]
    unique = dict(zip(keys, sides, strict=True))
    places = {key: place for place, key in enumerate(unique)}
    vectors = model.encode(
        list(unique.values()), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=sys.stderr.isatty()
    )
    return vectors[[places[key] for key in keys]]


def _relatives(rows: Sequence[Row], columns: dict[Content, int]) -> list[list[torch.Tensor]]:
    """Return, for each row, the candidates that its anchor and its group rule out."""
    keys: list[list[Content | str]] = [[_content(row.sides[0]), *([row.group] if row.group else [])] for row in rows]
    ruled_out: dict[Content | str, set[int]] = {}
    for row, row_keys in zip(rows, keys, strict=True):
        own = {columns[content] for content in map(_content, row.sides) if content in columns}
        for key in row_keys:
            ruled_out.setdefault(key, set()).update(own)
    tensors = {key: torch.tensor(sorted(own)) for key, own in ruled_out.items()}
    return [[tensors[key] for key in row_keys] for row_keys in keys]


def _read(options: argparse.Namespace) -> tuple[list[Row], list[BadRow], list[Side]]:
    """Read rows and corpus, and tell of what is left out."""
    preprocessor = open_preprocessor(options.checkpoint, max_pixels=options.max_pixels)
    rows, bad_rows = parse_rows(options.data, preprocessor=preprocessor, on_error=options.on_error)
    if rows[0].score is not None or len(rows[0].sides) != 2:
        has = "scores" if rows[0].score is not None else f"{len(rows[0].sides) - 2} negatives a row"
        raise DataError(f"{options.data} has {has} already; rows of anchor and positive are needed. Take those out.")
    corpus: list[Side] = []
    if options.corpus:
        corpus, bad_sides = read_sides(options.corpus, preprocessor=preprocessor, on_error=options.on_error)
        _tell(options.corpus, bad_sides, len(corpus))
    return rows, bad_rows, corpus


def _tell(path: Path, bad_rows: Sequence[BadRow], num_good: int) -> None:
    print(f"{path}: {num_good} rows" + (f", {len(bad_rows)} left out:\n{listing(path, bad_rows)}" if bad_rows else ""))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    default = MiningOptions()
    parser = argparse.ArgumentParser(
        prog="python -m finetune.mine",
        description="Add hard negatives to rows of anchor and positive.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("files").add_argument
    add("--checkpoint", required=True, help="folder or hub id of a Qwen3-VL(-Embedding)")
    add("--data", required=True, type=local_path, help="rows of anchor and positive, .jsonl or .parquet")
    add("--corpus", type=local_path, help="more candidates: a text or an object of text and image a row")
    add("--output", required=True, type=local_path, help="the rows with their negatives, .jsonl")
    add("--overwrite", action="store_true", help="replace --output if it exists")
    add(
        "--on-error",
        choices=get_args(OnError),
        default="raise",
        help="what to do with bad rows and those with too few negatives; skipped ones are listed",
    )
    add = parser.add_argument_group("negatives").add_argument
    add("--num-negatives", type=int, default=default.num_negatives, help="of every row")
    add("--range-min", type=int, default=default.range_min, help="nearest candidates that are passed over")
    add("--range-max", type=int, default=default.range_max, help="nearest candidates that are looked at")
    add("--absolute-margin", type=float, help="how far a negative's cosine is at least below the positive's")
    add("--relative-margin", type=float, help="the same, as a share of the positive's cosine")
    add("--max-score", type=float, help="highest cosine of a negative")
    add("--sampling", choices=get_args(Sampling), default=default.sampling, help="of the candidates that are left")
    add("--seed", type=int, default=default.seed, help="of --sampling random")
    add = parser.add_argument_group("run").add_argument
    add("--batch-size", type=int, default=32, help="items that are encoded at a time")
    add("--max-pixels", type=int, help="image budget, as the client's max_pixels")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    mining = MiningOptions(**{name: getattr(options, name) for name in MiningOptions.__dataclass_fields__})
    if options.output.suffix not in (".jsonl", ".json"):
        raise MiningError(f"--output {options.output} ends in {options.output.suffix!r}; rows are written as .jsonl.")
    if options.output.exists() and not options.overwrite:
        raise MiningError(f"{options.output} exists already. Pass --overwrite to replace it, or another --output.")
    rows, bad_rows, corpus = _read(options)
    model = load_model(options.checkpoint, max_pixels=options.max_pixels)
    found = mine(rows, corpus, model, mining, batch_size=options.batch_size)
    num_rows = len(rows) + len(bad_rows)
    enough = [len(negatives) == mining.num_negatives for negatives in found]
    bad_rows += [
        BadRow(
            row.line,
            "NEGATIVES_TOO_FEW",
            f"{len(negatives)} of {mining.num_negatives} negatives are left. Raise range_max or max_score, lower "
            "range_min or the margins, or add a corpus.",
        )
        for row, negatives, is_enough in zip(rows, found, enough, strict=True)
        if not is_enough
    ]
    bad_rows.sort(key=lambda bad: bad.line)
    if bad_rows and (options.on_error == "raise" or not any(enough)):
        raise DataError.of_rows(options.data, bad_rows, num_rows)
    write_rows(options.output, compress(rows, enough), compress(found, enough))
    _tell(options.data, bad_rows, sum(enough))
    print(f"wrote {options.output}")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line; a refusal is a message, not a stack trace."""
    options = _parse(arguments)
    try:
        with interruptible(lambda: f"{options.output} was not written."):
            _run(options)
    except (CheckpointError, DataError, MiningError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
