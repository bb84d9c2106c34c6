"""The model as sentence-transformers runs it: what every peer on PyTorch serves.

Runs in the peers' environments, never in this project's. Settings come as JSON in the variable PEER_SETTINGS.
"""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers.base.modules.transformer as modules
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLProcessor

from ..workload import Item

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """What a peer is started with."""

    checkpoint: str
    dtype: str  # bf16 or fp32
    batch_size: int
    port: int = 0


def settings() -> Settings:
    """Read the variable PEER_SETTINGS."""
    return Settings(**json.loads(os.environ["PEER_SETTINGS"]))


class Processor(Qwen3VLProcessor):
    """Qwen3-VL's processor without video, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Let the video processor be None."""
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[no-untyped-call]


class AutoProcessor:
    """What sentence-transformers finds in place of transformers' class, which asks for torchvision."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Processor:
        """Put the processor together out of a checkpoint's files, with the image processor that runs on Pillow."""
        return Processor(  # type: ignore[no-untyped-call]
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(name),
            tokenizer=AutoTokenizer.from_pretrained(name, trust_remote_code=False),
            chat_template=(Path(name) / "chat_template.jinja").read_text(encoding="utf-8"),
        )


class Encoder:
    """Items to unit vectors, sorted by length and in batches, on all cores."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        modules.AutoProcessor = AutoProcessor  # a processor cannot be handed in
        self.batch_size = settings.batch_size
        self.model = SentenceTransformer(
            settings.checkpoint, device="cpu", model_kwargs={"dtype": DTYPES[settings.dtype]}
        )
        self(WARM_UP)

    def __call__(self, items: list[Item], batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Return float32 (n, D)."""
        inputs = [_input(text, image) for text, image in items]
        vectors = self.model.encode(inputs, batch_size=batch_size or self.batch_size, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


WARM_UP: list[Item] = [("warm up", b"")]


def _input(text: str, image: bytes) -> Any:
    if not image:
        return text
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    return {"image": opened, "text": text} if text else opened  # in the order of the official script


def from_json(message: dict[str, str]) -> Item:
    """Read an item off the wire: `text`, and `image` in base64."""
    return message.get("text", ""), base64.b64decode(message.get("image", ""))


def to_json(vector: npt.NDArray[np.float32]) -> dict[str, str]:
    """Write a vector as the base64 of its float32 bytes, which costs far less than decimal numbers."""
    return {"embedding": base64.b64encode(vector.tobytes()).decode()}
