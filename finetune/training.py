"""The training run: sentence-transformers' trainer, with batches by group, logs, and a resume that changes nothing.

Knows options, files and steps; what trains, what is lost and what is read are other modules' business.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from finetune.batches import NOT_SIDES, GroupBatchSampler, nothing_to_learn
from finetune.losses import LossOptions, build_loss
from finetune.model import Qwen3VLEncoder, load_model, save_checkpoint, small_files
from finetune.paths import is_url
from finetune.trainable import Language, Vision, make_trainable, merge_adapter, save_adapter
from preprocessing import PackError

COMPLETE = "complete"  # a file that is written when all others of a snapshot, or of the run, are
OPTIONS = "options.json"  # of the run


class TrainingError(Exception):
    """Training cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class TrainingOptions:
    """What a run depends on, beside checkpoint and data: the same options give the same weights."""

    loss: LossOptions = field(default_factory=LossOptions)
    language: Language = "lora"
    vision: Vision = "frozen"
    rank: int = 32  # of LoRA
    alpha: int = 32
    epochs: float = 1.0
    max_steps: int = -1  # more than 0: instead of epochs
    batch_size: int = 32  # rows
    learning_rate: float = 1e-4
    embedding_learning_rate: float | None = None  # of token embeddings, which see few gradients; left out, the same
    warmup: float = 0.05  # share of the steps; the rate rises, then falls along a cosine
    weight_decay: float = 0.01
    beta2: float = 0.98  # of AdamW: gradients of contrastive losses shrink fast, which 0.999 would remember for long
    max_grad_norm: float = 1.0
    bf16: bool = False  # of the forward pass; weights and their updates stay in float32
    gradient_checkpointing: bool = False
    max_pixels: int | None = None  # image budget; the server's bound where left out
    log_steps: int = 10
    save_steps: int = 200  # also how often the evaluation rows are looked at
    seed: int = 0


class Collator(SentenceTransformerDataCollator):
    """Preprocesses the sides of rows; `group` is the sampler's business."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the tensors of a batch.

        Raises
        ------
        TrainingError
            A side cannot be preprocessed: its image has changed since the rows were read, or they were not checked.
        """
        rows = [{name: value for name, value in row.items() if name != "group"} for row in features]
        try:
            batch: dict[str, Any] = super().__call__(rows)
        except (OSError, PackError) as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"a batch cannot be preprocessed ({reason}). Put the file back and go on with --resume, or correct the "
                "rows and begin again."
            ) from error
        return batch


class Trainer(SentenceTransformerTrainer):
    """Keeps of the model, from step to step, what trains: a small snapshot, exact in float32."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}
        save_file(trained, folder / "trained.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained = load_file(Path(resume_from_checkpoint) / "trained.safetensors")
        weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in trained.items():
                weights[name].copy_(weight)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card: the checkpoint's own files are kept."""


class Snapshots(TrainerCallback):
    """Marks a snapshot as complete when its last file is written, so that a kill while saving does no harm."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See TrainerCallback."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    @staticmethod
    def latest(folder: Path) -> Path | None:
        """Return the last complete snapshot, and remove what was not completed."""
        complete = Snapshots.complete(folder)
        for path in set(folder.glob("checkpoint-*")) - set(complete):
            shutil.rmtree(path)
        return complete[-1] if complete else None

    @staticmethod
    def complete(folder: Path) -> list[Path]:
        """Return the complete snapshots, the last one last."""
        snapshots = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
        return sorted(snapshots, key=lambda path: int(path.name.split("-")[1]))


class CsvLog(TrainerCallback):
    """One line for each value that is logged: step, epoch, name, value."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        kept = [line for line in lines if line.count(",") == 3 and int(line.split(",")[0]) <= resume_step]
        path.write_text("\n".join(["step,epoch,name,value", *kept]) + "\n", encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """See TrainerCallback."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            for name, value in (logs or {}).items():
                if name != "epoch":
                    csv.writer(file, lineterminator="\n").writerow(
                        [state.global_step, f"{state.epoch:.4f}", name, value]
                    )


def fine_tune(
    checkpoint: str,
    train: Dataset,
    evaluation: Dataset | None,
    output: Path,
    options: TrainingOptions,
    *,
    resume: bool = False,
    keep_adapter: bool = False,
) -> None:
    """Train a checkpoint on rows, and write a plain Hugging Face checkpoint.

    Parameters
    ----------
    checkpoint
        Folder or hub id of a Qwen3-VL(-Embedding).
    train, evaluation
        What `finetune.data.read_rows` gives; the loss on the second is logged with every snapshot.
    output
        Folder to write. `training/` in it holds logs and, until the end, snapshots.
    resume
        Go on after the last complete snapshot of an interrupted run with the same options; the result is the same.
    keep_adapter
        Also write the LoRA adapters alone into `adapter/`.

    Raises
    ------
    TrainingError
        `output` is a URL or holds something else already, the options changed, the loss does not fit the rows, nothing
        can be learned from them, or a row cannot be preprocessed.
    CheckpointError
        The checkpoint cannot be read.
    """
    if is_url(output):
        raise TrainingError(f"{output} is a URL. Write to a folder of this machine, and copy it there.")
    folder = output / "training"
    _check_options(options, keep_adapter)
    for rows in filter(None, (train, evaluation)):
        _check_rows(rows, options)
    if reason := nothing_to_learn(train, options.loss.name, options.batch_size):
        raise TrainingError(f"nothing can be learned: {reason}.")
    run = _describe(checkpoint, train, options)
    snapshot = _find_snapshot(output, run, resume)
    torch.manual_seed(options.seed)
    model = load_model(checkpoint, max_pixels=options.max_pixels)
    encoder: Qwen3VLEncoder = model[0]  # type: ignore[assignment]
    small_files(encoder.folder)  # what cannot be copied at the end is refused now
    if too_large := [size for size in options.loss.matryoshka if size > encoder.get_embedding_dimension()]:
        raise TrainingError(
            f"matryoshka names {too_large[0]} dimensions; the vectors of {checkpoint} have "
            f"{encoder.get_embedding_dimension()}. Name fewer."
        )
    make_trainable(encoder, options.language, options.vision, rank=options.rank, alpha=options.alpha)
    if options.gradient_checkpointing:
        encoder.checkpoints_gradients = True
        encoder.whole.activation_checkpointing_enable({"use_reentrant": False})
    loss = build_loss(model, options.loss)
    if not resume:
        folder.mkdir(parents=True)
        (folder / "options.tmp").write_text(json.dumps(run, indent=2), encoding="utf-8")
        (folder / "options.tmp").replace(folder / OPTIONS)
    resume_step = int(snapshot.name.split("-")[1]) if snapshot else 0
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1 if snapshot else None)
    trainer = Trainer(
        model=model,
        args=_arguments(options, folder, train, evaluation),
        train_dataset=train,
        eval_dataset=evaluation,
        loss=loss,
        data_collator=Collator(encoder.preprocess),
        callbacks=[Snapshots(), CsvLog(folder / "log.csv", resume_step), TensorBoardCallback(writer)],
    )
    # torch's fused attention for CPUs is ten times slower than plain products on its way back in bfloat16.
    plain = options.bf16 and not torch.cuda.is_available()
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        trainer.train(resume_from_checkpoint=str(snapshot) if snapshot else None)
    writer.close()
    if keep_adapter:
        save_adapter(encoder, output / "adapter")
    merge_adapter(encoder)
    save_checkpoint(encoder, output)
    (folder / COMPLETE).touch()
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def describe_interrupted(output: Path) -> str:
    """Say what an interrupted run left in `output`, and how it goes on."""
    folder = output / "training"
    if not (folder / OPTIONS).exists():
        return "training had not begun; nothing was written."
    if (folder / COMPLETE).exists():
        return f"{output} holds the finished checkpoint."
    if snapshots := Snapshots.complete(folder):
        return f"the last snapshot is {snapshots[-1]}. Go on with the same command and --resume."
    return (
        f"no snapshot was written in {folder} yet; one is written every --save-steps. The same command with --resume "
        "begins again."
    )


def _arguments(
    options: TrainingOptions, folder: Path, train: Dataset, evaluation: Dataset | None
) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        batch_sampler=GroupBatchSampler if "group" in train.column_names else BatchSamplers.NO_DUPLICATES,
        learning_rate=options.learning_rate,
        learning_rate_mapping=(
            {"embed_tokens": options.embedding_learning_rate} if options.embedding_learning_rate is not None else {}
        ),
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        adam_beta2=options.beta2,
        max_grad_norm=options.max_grad_norm,
        use_cpu=not torch.cuda.is_available(),
        bf16=options.bf16,
        seed=options.seed,
        data_seed=options.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=options.log_steps,
        save_steps=options.save_steps,
        save_total_limit=2,
        eval_strategy="no" if evaluation is None else "steps",
        eval_steps=options.save_steps,
        report_to="none",  # what is logged, and where, is a callback's business
    )


def _digest(rows: Dataset) -> str:
    digest = hashlib.sha256()
    for batch in rows.data.table.to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()


def _check_options(options: TrainingOptions, keep_adapter: bool) -> None:
    loss = options.loss
    names = ["batch_size", "log_steps", "save_steps"]
    names += ["epochs"] if options.max_steps <= 0 else []
    names += ["rank", "alpha"] if options.language == "lora" else []
    trains_embeddings = options.language == "full" and options.embedding_learning_rate is not None
    names += ["embedding_learning_rate"] if trains_embeddings else []
    names += ["learning_rate"] if options.learning_rate or not trains_embeddings else []  # 0: embeddings train alone
    positive: list[tuple[str, float]] = [(name, getattr(options, name)) for name in names]
    positive += [("temperature", loss.temperature), ("cached_batch_size", loss.cached_batch_size)]
    positive += [("matryoshka", size) for size in loss.matryoshka]
    for name, value in positive:
        if not 0 < value < math.inf:
            raise TrainingError(f"{name} is {value}; it must be more than 0. Leave it out for its default.")
    for name, margin in (
        ("triplet_margin", loss.triplet_margin if loss.name == "triplet" else 0),
        ("false_negative_margin", loss.false_negative_margin or 0),
    ):
        if not margin > -2:  # cosines, and their distances, are 2 apart at most
            raise TrainingError(f"{name} is {margin}; nothing can be learned at -2 or less. Choose one of 0 or more.")
    if keep_adapter and options.language != "lora":
        raise TrainingError(f"language is {options.language!r}, which has no adapter to keep; only 'lora' has one.")
    if (options.language, options.vision) == ("frozen", "frozen"):
        raise TrainingError("language and vision are 'frozen', so nothing would train. Choose another of either.")


def _check_rows(rows: Dataset, options: TrainingOptions) -> None:
    loss, is_scored = options.loss.name, "score" in rows.column_names
    if is_scored != (loss == "cosent"):
        has, cure = ("a, b and score", "cosent") if is_scored else ("anchor and positive", "infonce")
        takes = "scores" if loss == "cosent" else "anchors and positives"
        raise TrainingError(f"loss {loss!r} takes rows of {takes}; these have {has}. Choose {cure!r}, or other rows.")
    num_negatives = sum(name.startswith("negative_") for name in rows.column_names)
    if loss == "triplet" and num_negatives != 1:
        raise TrainingError(
            f"loss 'triplet' takes one negative a row; these have {num_negatives}. Keep one, find some with "
            "finetune.mine, or choose 'infonce', which takes any number."
        )
    sides = [name for name in rows.column_names if name not in NOT_SIDES]
    if options.language == "frozen" and not any(side["image"] for name in sides for side in rows[name]):
        raise TrainingError("language is 'frozen', and no row has an image, so nothing would train. Choose 'lora'.")


def _describe(checkpoint: str, train: Dataset, options: TrainingOptions) -> dict[str, Any]:
    """Return what the weights depend on, as JSON has it."""
    run = {"checkpoint": checkpoint, "rows": len(train), "rows_sha256": _digest(train), **dataclasses.asdict(options)}
    described: dict[str, Any] = json.loads(json.dumps(run))
    return described


def _find_snapshot(output: Path, run: dict[str, Any], resume: bool) -> Path | None:
    """Check that a run may start in `output`, or find where an interrupted one goes on: its last snapshot, if any."""
    folder = output / "training"
    if not resume:
        if output.exists() and any(output.iterdir()):
            raise TrainingError(f"{output} is not empty. Choose another --output, or go on with --resume.")
        return None
    if (folder / COMPLETE).exists():
        raise TrainingError(f"{output} holds a finished checkpoint; there is nothing to resume.")
    if not (folder / OPTIONS).exists():
        raise TrainingError(f"{folder / OPTIONS} is missing; there is no run to resume. Leave out --resume.")
    before = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    changed = [f"{key} was {before.get(key)!r}, is {now!r}" for key, now in run.items() if before.get(key) != now]
    if changed:
        raise TrainingError(f"the run in {output} had other options: {'; '.join(changed)}. Resume with the same ones.")
    return Snapshots.latest(folder)
