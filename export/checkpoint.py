"""Read a Qwen3-VL(-Embedding) checkpoint: sizes, prompt, weights, fingerprint.

Knows the files of a Hugging Face checkpoint; knows nothing of ONNX or Triton.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from checkpoint_files import CheckpointError, find_checkpoint
from settings import MIN_DIMENSIONS, preprocessing_settings, render

VISION_LAYOUT = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3}
IMAGE_MEAN_AND_STD = [0.5, 0.5, 0.5]  # folded into the vision graph as v / 127.5 - 1


class ExportError(Exception):
    """The export cannot go on; the message says why and what to do."""


class DisagreementError(ExportError):
    """A tower is too far from transformers."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files were read and accepted; the weights stay on disk."""

    folder: Path
    name: str  # as the user gave it: a hub id, or the folder's name
    config: Any  # Qwen3VLConfig
    tokenizer: PreTrainedTokenizerBase
    exif_orientation: bool = True  # whether pictures are turned as EXIF says

    @property
    def hidden_size(self) -> int:
        """D: the dimensions of an embedding."""
        return int(self.config.text_config.hidden_size)

    @property
    def num_deepstack(self) -> int:
        """DeepStack features of a visual token."""
        return len(self.config.vision_config.deepstack_visual_indexes)

    @property
    def image_embeds_size(self) -> int:
        """Numbers of a visual token at the language model's border: 4D for a DeepStack of three."""
        return (1 + self.num_deepstack) * self.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return int(self.config.text_config.vocab_size)

    @property
    def image_token(self) -> str:
        """The token that stands for one visual token."""
        return str(self.tokenizer.convert_ids_to_tokens(self.config.image_token_id))

    def preprocessing(self) -> dict[str, Any]:
        """Return what `preprocess` needs beside the tokenizer: preprocessing.json."""
        try:
            return preprocessing_settings(self.config, self.tokenizer, exif_orientation=self.exif_orientation)
        except ValueError as error:
            raise ExportError(f"{self.name}: {error}") from error

    def render(self, instruction: str, content: list[dict[str, str]]) -> str:
        """Render one item through the checkpoint's chat template."""
        return render(self.tokenizer, instruction, content)

    def beginning(self, instruction: str) -> list[int]:
        """Return the tokens that every item under an instruction begins with, whatever its text."""
        contents: list[dict[str, str]] = [{"type": "text", "text": text} for text in ("a", "1")] + [{"type": "image"}]
        prompts = [self.tokenizer(self.render(instruction, [content]))["input_ids"] for content in contents]
        same = [len(set(tokens)) == 1 for tokens in zip(*prompts, strict=False)]
        return list(prompts[0][: same.index(False)])

    def load_model(self) -> Qwen3VLModel:
        """Load the weights in float32, without the language head."""
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            self.folder,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation="sdpa",
            trust_remote_code=False,
            use_safetensors=True,
        )
        whole, report = loaded
        missing = sorted(set(report["missing_keys"]) - {"lm_head.weight"})
        if missing:
            raise ExportError(
                f"{self.name}: {len(missing)} tensors are missing ({missing[0]}, ...) and would be random. "
                "Save the whole model, with names that begin `model.visual.` and `model.language_model.`."
            )
        model: Qwen3VLModel = whole.model.eval()
        return model

    def fingerprint(self, options: dict[str, str]) -> str:
        """Hash everything that a vector depends on: weights, tokenizer, prompt, configuration, graph options."""
        digest = hashlib.sha256(json.dumps([self.preprocessing(), options], sort_keys=True).encode())
        for path in sorted(
            [*self.folder.glob("*.safetensors"), self.folder / "config.json", self.folder / "tokenizer.json"]
        ):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def copy_tokenizer(self, folder: Path) -> None:
        """Put tokenizer.json into `folder`."""
        shutil.copyfile(self.folder / "tokenizer.json", folder / "tokenizer.json")


def open_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint in a folder or on the hub, and check that this project can serve it.

    Raises
    ------
    ExportError
        It is not there, lacks a file, is no Qwen3-VL, or would run code.
    """
    try:
        folder = find_checkpoint(name)
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on broken files
        raise ExportError(
            f"{name}: config.json or the tokenizer's files are broken ({error}). Save them again."
        ) from error
    for key, expected in VISION_LAYOUT.items():
        if (value := getattr(config.vision_config, key)) != expected:
            raise ExportError(f"{name}: vision_config.{key} is {value}; the wire format fixes {expected}.")
    _check_normalisation(name, folder)
    checkpoint = Checkpoint(folder, folder.resolve().name if Path(name).is_dir() else name, config, tokenizer)
    if checkpoint.hidden_size < MIN_DIMENSIONS:
        raise ExportError(f"{name}: hidden_size is {checkpoint.hidden_size}; at least {MIN_DIMENSIONS} is needed.")
    return checkpoint


def _check_normalisation(name: str, folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in ("image_mean", "image_std"):
        if settings.get(key, IMAGE_MEAN_AND_STD) != IMAGE_MEAN_AND_STD:
            raise ExportError(
                f"{name}: {key} is {settings[key]}; the vision graph normalises with {IMAGE_MEAN_AND_STD}."
            )
