"""The model that is trained: transformers' Qwen3-VL between the server's own preprocessing and its pooling.

One input module for sentence-transformers, so that its trainer, losses and evaluators work on what is served. Knows
nothing of losses, data files or training.

Letters: n items, T tokens of the longest, V visual tokens of all, D hidden size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoTokenizer,
    DynamicCache,
    Qwen3VLForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

from checkpoint_files import CheckpointError, find_checkpoint
from preprocessing import Bounds, Pack, Preprocessor
from settings import preprocessing_settings

__all__ = [
    "CheckpointError",
    "Qwen3VLEncoder",
    "find_checkpoint",
    "load_model",
    "open_preprocessor",
    "save_checkpoint",
    "small_files",
]

PATCH_SIZE = 1536  # numbers of a patch: 3 channels x 2 frames x 16 x 16
ROWS_AT_A_TIME = 96  # items of about the same length go through the model together, so that little is padding
UNBOUNDED = 2**31 - 1  # of a batch: the server's bounds on a pack do not hold for training, those on an item do


class Qwen3VLEncoder(InputModule):
    """Sides in, pooled hidden states out; see `sentence_transformers.base.modules.InputModule`.

    Parameters
    ----------
    folder
        A Hugging Face checkpoint of Qwen3-VL(-Embedding).
    max_pixels
        What images are scaled down to at most; left out, the server's default.
    """

    def __init__(self, folder: Path, *, max_pixels: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation={"text_config": "sdpa", "vision_config": "within_images"},
            trust_remote_code=False,
            use_safetensors=True,
        )
        self.whole, report = loaded
        missing = set(report["missing_keys"])
        if missing - {"lm_head.weight"}:
            raise CheckpointError(
                f"{folder}: {len(missing)} tensors are missing ({sorted(missing)[0]}, ...) and would be random. "
                "Save the whole model, with names that begin `model.visual.` and `model.language_model.`."
            )
        self.has_head = not missing
        self.folder = folder
        self.model: Any = self.whole.model  # Qwen3VLModel; peft puts its wrapper here
        self.model.visual.patch_embed = PatchEmbedding(self.model.visual.patch_embed.proj)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._image_token_id = self.whole.config.image_token_id
        self._preprocessor = _preprocessor(folder, self.whole.config, self.tokenizer, max_pixels)
        self.checkpoints_gradients = False

    @property
    def modalities(self) -> list[Any]:
        """Text, an image, or both."""
        return ["text", "image", ("image", "text")]

    def preprocess(self, inputs: Iterable[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """Preprocess sides as the server does, and pad them on the right.

        Parameters
        ----------
        inputs
            Texts, or `finetune.data.Side`: text, image and instruction, "" for none.
        prompt
            The instruction of those that have none of their own.

        Returns
        -------
        input_ids, attention_mask
            int64 (n, T).
        position_ids
            int64 (n, T, 3): t, h, w of each token.
        pixel_values, image_grid_thw, num_images_per_sample
            uint8 (4V, 1536), int64 (images, 3), int64 (n,); only if any side has an image.

        Raises
        ------
        PackError
            Listing every bad side, as the server does.
        """
        sides = [{"text": side} if isinstance(side, str) else side for side in inputs]
        images = [_read(side.get("image")) for side in sides]
        pack = self._preprocessor(
            [(side.get("text") or "").encode() for side in sides],
            images if any(images) else None,
            [(side.get("instruction") or prompt or "").encode() for side in sides],
        )
        return _padded(pack, len(sides), self.whole.config.text_config.pad_token_id or 0)

    def forward(self, features: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        """Put the hidden state of each item's last token, (n, D), into `sentence_embedding`."""
        lengths = features["attention_mask"].sum(1)
        order = lengths.argsort(stable=True)
        pooled = torch.cat([self._pooled(_select(features, rows)) for rows in order.split(ROWS_AT_A_TIME)])
        if torch.is_grad_enabled() and not pooled.requires_grad:
            pooled.requires_grad_()  # texts alone, where the vision tower alone trains: nothing to learn, no error
        features["sentence_embedding"] = pooled[order.argsort()]
        return features

    def _pooled(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (n, D) of items of about the same length."""
        input_ids, lengths = features["input_ids"], features["attention_mask"].sum(1)
        positions = features["position_ids"].permute(2, 0, 1)  # (3, n, T)
        images = self._images(features) if "pixel_values" in features else {}
        # Attention is causal and padding is on the right: no token of an item ever sees it, and no mask is needed.
        num_shared, cache = self._num_shared(input_ids, lengths), None
        if num_shared:  # the system turn is the same for all: computed once, attended to by all
            cache = DynamicCache(config=self.whole.config.text_config)
            self.model(
                input_ids=input_ids[:1, :num_shared],
                position_ids=positions[:, :1, :num_shared],
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_repeat_interleave(len(input_ids))
        states: torch.Tensor = self.model(
            input_ids=input_ids[:, num_shared:],
            position_ids=positions[:, :, num_shared:],
            past_key_values=cache,
            use_cache=cache is not None,
            **images,
        ).last_hidden_state
        return states[torch.arange(len(states), device=states.device), lengths - 1 - num_shared].float()

    def _images(self, features: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Run the vision tower, and return its output as an argument of the model.

        Images of one size are given as one film, whose frames do not see each other: the same numbers, in one go.
        """
        grids = features["image_grid_thw"]
        if bool((grids == grids[0]).all()):
            grids = grids[:1] * torch.tensor([len(grids), 1, 1], device=grids.device)
        lengths = (grids[:, 1] * grids[:, 2]).repeat_interleave(grids[:, 0])
        output = self.model.visual(
            features["pixel_values"].float() / 127.5 - 1,
            grid_thw=grids,
            cu_seqlens=torch.tensor([0, int(lengths.sum())], dtype=torch.int32, device=grids.device),
            lengths=lengths.tolist(),
        )
        output.pooler_output = (output.pooler_output,)
        output.deepstack_features = [(features,) for features in output.deepstack_features]
        return {"mm_encoder_outputs": {"image": output}}

    def _num_shared(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> int:
        """Count the text tokens that all items begin with; none where checkpointing forbids a cache."""
        if len(input_ids) < 2 or (self.training and self.checkpoints_gradients):
            return 0
        same = (input_ids == input_ids[:1]).all(0) & (input_ids[0] != self._image_token_id)
        return min(int(same.cumprod(0).sum()), int(lengths.min()) - 1)

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return int(self.whole.config.text_config.hidden_size)

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write a plain Hugging Face checkpoint; see `save_checkpoint`."""
        save_checkpoint(self, Path(output_path))


class PatchEmbedding(torch.nn.Module):
    """transformers' convolution, whose kernel is a whole patch, as the matrix product that it is: several times faster.

    The weights keep their name and shape.
    """

    def __init__(self, convolution: torch.nn.Conv3d) -> None:
        super().__init__()
        self.proj = convolution

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return (P, hidden size) of P patches (P, 1536)."""
        return torch.nn.functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def load_model(checkpoint: str | Path, *, max_pixels: int | None = None) -> SentenceTransformer:
    """Load a checkpoint from a folder or the hub, in float32: `encode` takes sides and gives unit vectors.

    Raises
    ------
    CheckpointError
        It is not there, is incomplete, is no Qwen3-VL or would run code, or `max_pixels` is out of the server's bounds.
    """
    folder = find_checkpoint(str(checkpoint))
    disable_progress_bar()
    try:
        encoder = Qwen3VLEncoder(folder, max_pixels=max_pixels)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # whatever is wrong with its files
        raise CheckpointError(f"{checkpoint} cannot be loaded ({error}). Save it again.") from error
    return SentenceTransformer(modules=[encoder, Normalize()], similarity_fn_name="cosine")


def open_preprocessor(checkpoint: str | Path, *, max_pixels: int | None = None) -> Preprocessor:
    """Open what the rows of a checkpoint go through, without its weights; parameters and errors as `load_model`."""
    _bounds(max_pixels)  # before anything is downloaded
    folder = find_checkpoint(str(checkpoint))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return _preprocessor(folder, config, tokenizer, max_pixels)
    except Exception as error:  # transformers raises anything on broken files
        raise CheckpointError(f"{checkpoint} cannot be loaded ({error}). Save it again.") from error


def save_checkpoint(encoder: Qwen3VLEncoder, output: Path) -> None:
    """Write the model into `output`, in the dtype of the checkpoint that it came from, beside its small files."""
    with safe_open(min(encoder.folder.glob("*.safetensors")), "pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    state = {name: tensor.to(dtype) for name, tensor in encoder.whole.state_dict().items()}
    if not encoder.has_head or encoder.whole.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    encoder.whole.save_pretrained(output, state_dict=state)
    for path in small_files(encoder.folder):  # config.json again: that of transformers says float32
        copy = output / path.relative_to(encoder.folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    mode = (output / "config.json").stat().st_mode
    for path in output.glob("*.safetensors"):
        path.chmod(mode)  # safetensors lets nobody but the owner read them, and a server may be somebody else


def small_files(folder: Path) -> list[Path]:
    """List the files of a checkpoint that are copied beside its new weights.

    Raises
    ------
    CheckpointError
        One is a link out of the checkpoint: who made it could have a private file copied and published.
    """
    patterns = ("*.json", "*.jinja", "*.txt", "[0-9]_*/config.json")  # the last are sentence-transformers' modules
    paths = [path for pattern in patterns for path in folder.glob(pattern) if not path.name.endswith(".index.json")]
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":  # of the hub's cache, whose files are links to its blobs
        inside.append(inside[0].parents[1] / "blobs")
    for path in paths:
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in inside):
            raise CheckpointError(f"{path} is a link to {target}, out of the checkpoint. Copy the file in its place.")
    return paths


def _within_images(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, lengths: list[int], **__: Any
) -> tuple[torch.Tensor, None]:
    """Attend within each image, all of them at once where they have one size.

    Parameters
    ----------
    query, key, value
        (1, heads, patches of all images, head size).
    lengths
        Patches of each image.

    Returns
    -------
    torch.Tensor
        (1, patches, heads, head size).
    """
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    if len(set(lengths)) == 1:
        shape = (query.shape[1], len(lengths), lengths[0], -1)
        parts = [tensor[0].view(shape).transpose(0, 1) for tensor in (query, key, value)]  # (images, heads, patches, _)
        output = attend(*parts, scale=module.scaling).transpose(1, 2).flatten(0, 1)[None]
        return output, None
    images = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([attend(*image, scale=module.scaling) for image in images], dim=2).transpose(1, 2), None


AttentionInterface.register("within_images", _within_images)


def _select(features: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return some items of a batch, in the order asked for, padded to the longest of them."""
    num_tokens = int(features["attention_mask"][rows].sum(1).max())
    selected = {name: features[name][rows, :num_tokens] for name in ("input_ids", "attention_mask", "position_ids")}
    if "pixel_values" not in features:
        return selected
    has_image = features["num_images_per_sample"][rows] > 0
    if has_image.any():
        grids = features["image_grid_thw"]
        images = (features["num_images_per_sample"].cumsum(0) - 1)[rows][has_image]
        patches = features["pixel_values"].split(grids.prod(1).tolist())
        selected["pixel_values"] = torch.cat([patches[image] for image in images.tolist()])
        selected["image_grid_thw"] = grids[images]
    return selected


def _preprocessor(folder: Path, config: Any, tokenizer: Any, max_pixels: int | None) -> Preprocessor:
    settings = preprocessing_settings(config, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(folder / "tokenizer.json", Path(scratch) / "tokenizer.json")
        (Path(scratch) / "preprocessing.json").write_text(json.dumps(settings), encoding="utf-8")
        return Preprocessor(Path(scratch), _bounds(max_pixels))


def _bounds(max_pixels: int | None) -> Bounds:
    """Return the server's bounds on an item, which training keeps, with an image budget within them."""
    bounds = Bounds(
        max_items=UNBOUNDED,
        max_pack_tokens=UNBOUNDED,
        max_pack_image_tokens=UNBOUNDED,
        max_pack_pixels=UNBOUNDED,
        max_pack_text_bytes=UNBOUNDED,
    )
    if max_pixels is None:
        return bounds
    if not bounds.min_pixels <= max_pixels <= bounds.max_pixels:
        raise CheckpointError(
            f"max_pixels is {max_pixels}; a server takes {bounds.min_pixels} to {bounds.max_pixels}. "
            f"Leave it out for {bounds.max_pixels}."
        )
    return replace(bounds, max_pixels=max_pixels)


def _read(image: str | None) -> bytes:
    return Path(image).read_bytes() if image else b""


def _padded(pack: Pack, num_items: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Cut a pack into items, without its sentinel, and pad them on the right."""
    lengths = torch.from_numpy(pack.lengths[0, :num_items].astype(np.int64))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (n, T)
    num_tokens = int(lengths.sum())
    input_ids = torch.full(mask.shape, pad_token_id, dtype=torch.int64)
    input_ids[mask] = torch.from_numpy(pack.input_ids[0, :num_tokens])
    position_ids = torch.zeros(*mask.shape, 3, dtype=torch.int64)
    position_ids[mask] = torch.from_numpy(pack.position_ids[0, :num_tokens].astype(np.int64))
    features = {"input_ids": input_ids, "attention_mask": mask.long(), "position_ids": position_ids}
    if pack.num_image_tokens.any():
        features |= {
            "pixel_values": torch.from_numpy(pack.patches[0].reshape(-1, PATCH_SIZE)),
            "image_grid_thw": torch.from_numpy(pack.grid_thw[0].astype(np.int64)),
            "num_images_per_sample": torch.from_numpy((pack.num_image_tokens > 0).astype(np.int64)),
        }
    return features
