"""The files of a checkpoint, found and checked before a library opens them, so that no code of a checkpoint ever runs.

For those who load one (export, fine-tuning), never while serving. Knows the layout of a Hugging Face checkpoint as
JSON and file names; imports neither torch nor transformers. Whoever loads what was found here still passes
`trust_remote_code=False` and `use_safetensors=True`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

MODEL_TYPE = "qwen3_vl"
# transformers calls whatever else of its classes is named here, models and processors included, and these ask for trust
TOKENIZER_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
CONFIGURATIONS = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
DOWNLOADED = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_SHOWN = 60  # characters of a value that a message shows


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; the message says why and what to do."""


def find_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint that is a folder, or comes from the hub.

    Raises
    ------
    CheckpointError
        It is not there, lacks a file, is no Qwen3-VL, or names something that could run code or lies outside of it.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=DOWNLOADED))
        except Exception as error:  # of the hub, the network or the name: the cure is the same
            raise CheckpointError(
                f"checkpoint {name!r} is neither a folder nor a model that the hub gives ({type(error).__name__}). "
                "Pass a folder with config.json and model.safetensors, or a hub id such as Qwen/Qwen3-VL-Embedding-2B."
            ) from error
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{name}: adapter_config.json makes it an adapter, which may name any other checkpoint as its base. "
            "Merge it into its base (merge_and_unload of peft), save that and pass it."
        )
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise CheckpointError(f"{name}: {file} is missing. Pass a complete Hugging Face checkpoint.")
    _check_configurations(name, {file: _read(name, folder / file) for file in CONFIGURATIONS})
    _check_weights(name, folder)
    return folder


def _check_configurations(name: str, configurations: dict[str, dict[str, Any]]) -> None:
    config = configurations["config.json"]
    if (model_type := config.get("model_type")) != MODEL_TYPE:
        raise CheckpointError(
            f"{name}: model_type is {_shown(model_type)}; only {MODEL_TYPE!r} can be fine-tuned or exported."
        )
    for file, values in configurations.items():
        if _names_code(values):
            raise CheckpointError(
                f"{name}: {file} names code of the checkpoint's own (auto_map), which is never run. If the classes of "
                "transformers give the same vectors, remove the entry from a copy of the checkpoint and pass that."
            )
    for file in ("config.json", "tokenizer_config.json"):
        tokenizer_class = configurations[file].get("tokenizer_class")
        if tokenizer_class is not None and tokenizer_class not in TOKENIZER_CLASSES:
            raise CheckpointError(
                f"{name}: tokenizer_class of {file} is {_shown(tokenizer_class)}; allowed are "
                f"{', '.join(TOKENIZER_CLASSES)}. Save the tokenizer as one of them."
            )
    for key, cure in (
        ("quantization_config", "Save the weights unquantised."),
        ("transformers_weights", "Name the weights model.safetensors, and remove the entry."),
    ):
        if config.get(key):
            raise CheckpointError(f"{name}: config.json has {key}, which is not supported. {cure}")


def _check_weights(name: str, folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        pickled = next((path.name for pattern in PICKLES for path in folder.glob(pattern)), None)
        instead = f" {_shown(pickled)} is never read, because a pickle can run code." if pickled else ""
        raise CheckpointError(
            f"{name}: no *.safetensors weights, so it cannot be loaded.{instead} Save the model with safetensors."
        )
    index = _read(name, folder / "model.safetensors.index.json")
    shards = index.get("weight_map", {})
    for shard in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{name}: model.safetensors.index.json names {_shown(shard)} in weight_map; weights are *.safetensors "
                "files beside it. Save the model again."
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{name}: {_shown(shard)} of model.safetensors.index.json is missing. Copy it, too.")


def _read(name: str, path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} without a file."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name}: its configuration files are broken ({path.name}: {str(error)[:200]}). Save them again."
        ) from error
    return values


def _names_code(values: dict[str, Any]) -> bool:
    """Say whether any object of a configuration, however deep, has an `auto_map`."""
    pending: list[Any] = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if value.get("auto_map"):
                return True
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return False


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."
