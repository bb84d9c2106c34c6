"""Fine-tune a checkpoint: `python -m finetune --checkpoint C --train data.jsonl --eval data.jsonl --output O`.

Only parses arguments; see `finetune.data` for the format of rows.
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from finetune.data import DataError, listing, read_rows
from finetune.interrupts import interruptible
from finetune.losses import LossName, LossOptions
from finetune.model import CheckpointError, open_preprocessor
from finetune.paths import local_path
from finetune.trainable import Language, Vision
from finetune.training import TrainingError, TrainingOptions, describe_interrupted, fine_tune


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    default, loss = TrainingOptions(), LossOptions()
    parser = argparse.ArgumentParser(
        prog="python -m finetune",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("files").add_argument
    add("--checkpoint", required=True, help="folder or hub id of a Qwen3-VL(-Embedding)")
    add("--train", required=True, type=local_path, help="rows to train on, .jsonl or .parquet")
    add("--eval", type=local_path, help="rows whose loss is logged with every snapshot")
    add("--output", required=True, type=local_path, help="folder for the new checkpoint; logs in training/")
    add(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="what to do with bad rows; skipped ones are listed",
    )
    add("--resume", action="store_true", help="go on with the interrupted run in --output")
    add("--adapter", action="store_true", help="also write the LoRA adapters alone, into adapter/")
    add = parser.add_argument_group("loss").add_argument
    add("--loss", choices=get_args(LossName), default=loss.name, help="infonce and triplet take anchors, cosent scores")
    add("--temperature", type=float, default=loss.temperature, help="of infonce and cosent")
    add("--directions", choices=["both", "forward"], default=loss.directions, help="of infonce")
    add("--false-negative-margin", type=float, help="infonce: leave out negatives this much nearer than the positive")
    add("--triplet-margin", type=float, default=loss.triplet_margin, help="of cosine distances")
    add("--matryoshka", type=int, nargs="+", default=[], metavar="D", help="dimensions to train beside the full size")
    add(
        "--cached-batch-size",
        type=int,
        default=loss.cached_batch_size,
        help="cached-infonce: items in memory at a time",
    )
    add = parser.add_argument_group("what trains").add_argument
    add("--language", choices=get_args(Language), default=default.language, help="language tower")
    add("--vision", choices=get_args(Vision), default=default.vision, help="vision tower")
    add("--rank", type=int, default=default.rank, help="of LoRA")
    add("--alpha", type=int, default=default.alpha, help="of LoRA")
    add = parser.add_argument_group("run").add_argument
    add("--epochs", type=float, default=default.epochs, help="times that every row is seen")
    add("--max-steps", type=int, default=default.max_steps, help="more than 0: instead of epochs")
    add("--batch-size", type=int, default=default.batch_size, help="rows of a step")
    add("--learning-rate", type=float, default=default.learning_rate, help="its highest value; it falls along a cosine")
    add("--embedding-learning-rate", type=float, help="of token embeddings, to train them from scratch")
    add("--warmup", type=float, default=default.warmup, help="share of the steps in which the rate rises")
    add("--weight-decay", type=float, default=default.weight_decay, help="of AdamW")
    add("--beta2", type=float, default=default.beta2, help="of AdamW")
    add("--max-grad-norm", type=float, default=default.max_grad_norm, help="gradients are clipped to it")
    add("--bf16", action="store_true", help="compute in bfloat16; weights stay in float32 until they are written")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--max-pixels", type=int, help="image budget, as the client's max_pixels")
    add("--log-steps", type=int, default=default.log_steps, help="steps between lines of the log")
    add("--save-steps", type=int, default=default.save_steps, help="steps between snapshots and evaluations")
    add("--seed", type=int, default=default.seed, help="of everything that is random")
    return parser.parse_args(arguments)


def run() -> None:
    """Read rows, fine-tune, say where the checkpoint is."""
    options = parse()
    loss = LossOptions(
        name=options.loss,
        temperature=options.temperature,
        directions=options.directions,
        false_negative_margin=options.false_negative_margin,
        triplet_margin=options.triplet_margin,
        matryoshka=tuple(options.matryoshka),
        cached_batch_size=options.cached_batch_size,
    )
    names = TrainingOptions.__dataclass_fields__.keys() - {"loss"}
    training = TrainingOptions(loss=loss, **{name: getattr(options, name) for name in names})
    try:
        with interruptible(lambda: describe_interrupted(options.output)):
            _fine_tune(options, training)
    except (CheckpointError, DataError, TrainingError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.output}")


def _fine_tune(options: argparse.Namespace, training: TrainingOptions) -> None:
    preprocessor = open_preprocessor(options.checkpoint, max_pixels=options.max_pixels)
    datasets = []
    for path in filter(None, (options.train, options.eval)):
        rows, bad_rows = read_rows(path, preprocessor=preprocessor, on_error=options.on_error)
        print(f"{path}: {len(rows)} rows" + (f", {len(bad_rows)} left out:" if bad_rows else ""))
        if bad_rows:
            print(listing(path, bad_rows))
        datasets.append(rows)
    train, evaluation = datasets[0], datasets[1] if options.eval else None
    fine_tune(
        options.checkpoint, train, evaluation, options.output, training,
        resume=options.resume, keep_adapter=options.adapter,
    )  # fmt: skip
