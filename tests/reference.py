"""The official embedder restated on transformers alone: what every vector of ours is compared with.

It knows the messages, the processor call and the pooling of the model's own script, and nothing of this project's
preprocessing. Text that looks like a special token is the one difference: see `Reference.input_ids`.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import Qwen2VLImageProcessorPil

from export.checkpoint import Checkpoint

DEFAULT_INSTRUCTION = "Represent the user's input."
MIN_PIXELS, MAX_PIXELS = 4 * 32 * 32, 1800 * 32 * 32


def load_rgb(image: Image.Image) -> Image.Image:
    """Load an image as the official script does, RGBA over white and any other mode converted, but as it is shown.

    That is upright, over white whatever its mode, and with deep grey scaled to 8 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.split()[3])
    return white


def processor(max_pixels: int = MAX_PIXELS, **options: bool) -> Qwen2VLImageProcessorPil:
    """Return transformers' Pillow processor with the official pixel bounds."""
    return Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, min_pixels=MIN_PIXELS, max_pixels=max_pixels,
        image_mean=[0.5] * 3, image_std=[0.5] * 3, **options,
    )  # fmt: skip


class Reference:
    """One item in, one vector out, by transformers in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.model = checkpoint.load_model()

    def input_ids(self, text: str, instruction: str = "", num_image_tokens: int = 0) -> list[int]:
        """Render the chat template and encode it with the tokenizer's own post-processor."""
        instruction = instruction.strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction += "."
        content = [{"type": "image"}] * bool(num_image_tokens)
        if text or not num_image_tokens:
            content.append({"type": "text", "text": text})
        prompt = self.checkpoint.render(instruction or DEFAULT_INSTRUCTION, content)
        pad = self.checkpoint.image_token
        return list(self.tokenizer(prompt.replace(pad, pad * num_image_tokens))["input_ids"])

    def embed(
        self,
        text: str = "",
        image: Image.Image | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> np.ndarray:
        """Return the unit vector of one item, float32 (d,)."""
        inputs = {}
        num_image_tokens = 0
        if image is not None:
            pixels = processor(max_pixels)(load_rgb(image), return_tensors="pt")
            num_image_tokens = int(pixels["image_grid_thw"].prod()) // 4
            inputs = {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
        ids = torch.tensor([self.input_ids(text, instruction, num_image_tokens)])
        if inputs:
            inputs["mm_token_type_ids"] = (ids == self.checkpoint.config.image_token_id).int()
        with torch.no_grad():
            self.model.rope_deltas = None
            state = self.model(input_ids=ids, **inputs).last_hidden_state[0, -1]
        return torch.nn.functional.normalize(state[:dimensions], dim=0).numpy()
