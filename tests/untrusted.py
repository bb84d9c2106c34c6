"""Checkpoints that try to run code, or to have files read that are not theirs, and what is said of each.

They are made of the folder of a good checkpoint. Whatever runs leaves a marker.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "ran"  # a file beside the checkpoint
MODULE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PretrainedConfig
class Evil(PretrainedConfig):
    model_type = "evil"
"""


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def marker(folder: Path) -> Path:
    """Return the file that exists when a checkpoint has run code."""
    return folder.with_name(MARKER)


def update(folder: Path, file: str, **values: Any) -> None:
    """Change a JSON file of a checkpoint, or begin one."""
    path = folder / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")


def plant_module(folder: Path) -> None:
    """Write a module that leaves the marker, as code and as a generation loop."""
    source = MODULE.format(marker=str(marker(folder)))
    (folder / "evil.py").write_text(source, encoding="utf-8")
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate/generate.py").write_text(source + "def generate(*_, **__): ...\n", encoding="utf-8")


def plant_pickle(folder: Path, name: str) -> None:
    """Write weights that leave the marker when they are unpickled."""
    (folder / name).write_bytes(pickle.dumps({"model.norm.weight": Touch(marker(folder))}))


def _config_of_its_own(folder: Path) -> None:
    update(folder, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})


def _model_of_its_own(folder: Path) -> None:
    names = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText")
    update(folder, "config.json", auto_map=dict.fromkeys(names, "evil.Evil"))


def _code_in_a_part(folder: Path) -> None:
    text_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    update(folder, "config.json", text_config=text_config | {"auto_map": {"AutoConfig": "evil.Evil"}})


def _tokenizer_of_its_own(folder: Path) -> None:
    update(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")


def _tokenizer_that_is_another_class(folder: Path) -> None:
    # transformers looks the name up among all of its classes, and asks for trust again there
    update(folder, "tokenizer_config.json", tokenizer_class="AutoConfig")
    update(folder, "config.json", tokenizer_class="AutoImageProcessor")


def _image_processor_of_its_own(folder: Path) -> None:
    update(folder, "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})


def _processor_of_its_own(folder: Path) -> None:
    update(folder, "processor_config.json", image_processor={"auto_map": {"AutoImageProcessor": "evil.Evil"}})


def _adapter(folder: Path) -> None:
    update(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="someone/else")
    plant_pickle(folder, "adapter_model.bin")


def _adapter_alone(folder: Path) -> None:
    _adapter(folder)
    (folder / "config.json").unlink()


def _pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    plant_pickle(folder, "pytorch_model.bin")


def _pickle_by_name(folder: Path) -> None:
    update(folder, "config.json", transformers_weights="adapter_model.bin")
    plant_pickle(folder, "adapter_model.bin")


def _index(folder: Path, shard: object) -> None:
    update(folder, "model.safetensors.index.json", weight_map={"model.norm.weight": shard})


def _shard_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.with_name("model.safetensors"))
    (folder / "other.safetensors").write_bytes(b"")
    _index(folder, "../model.safetensors")


def _template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _deep_json(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[" * 10**6, encoding="utf-8")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a config of its own": (_config_of_its_own, "model_type is 'evil'; only 'qwen3_vl' can be"),
    "a model of its own": (_model_of_its_own, r"config.json names code of the checkpoint's own \(auto_map\)"),
    "code in a part": (_code_in_a_part, "config.json names code of the checkpoint's own"),
    "a tokenizer of its own": (_tokenizer_of_its_own, "tokenizer_config.json names code"),
    "a tokenizer class": (_tokenizer_that_is_another_class, "tokenizer_class of config.json is 'AutoImageProcessor'"),
    "an image processor": (_image_processor_of_its_own, "preprocessor_config.json names code"),
    "a processor": (_processor_of_its_own, "processor_config.json names code"),
    "an adapter": (_adapter, "adapter_config.json makes it an adapter.*Merge it"),
    "an adapter alone": (_adapter_alone, "adapter_config.json makes it an adapter.*Merge it"),
    "pickled weights": (_pickled_weights, r"no \*.safetensors weights.* 'pytorch_model.bin' is never read"),
    "a pickle by name": (_pickle_by_name, "config.json has transformers_weights"),
    "quantised weights": (
        lambda folder: update(folder, "config.json", quantization_config={"quant_method": "awq"}),
        "config.json has quantization_config.*Save the weights unquantised",
    ),
    "a shard elsewhere": (_shard_elsewhere, r"names '../model.safetensors' in weight_map"),
    "a shard anywhere": (lambda folder: _index(folder, "/etc/passwd"), "names '/etc/passwd' in weight_map"),
    "a shard of no name": (lambda folder: _index(folder, {"a": 1}), "in weight_map; weights are"),
    "a shard that is missing": (lambda folder: _index(folder, "x.safetensors"), "'x.safetensors' .* is missing"),
    "a template that escapes": (
        lambda folder: _template(folder, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "chat template cannot be rendered.*unsafe",
    ),
    "a template that changes what it is given": (
        lambda folder: _template(folder, "{{ messages.clear() }}"),
        "chat template cannot be rendered",
    ),
    "a template that fails": (lambda folder: _template(folder, "{{ 1 / 0 }}"), "cannot be rendered.*division by zero"),
    "a long model_type": (
        lambda folder: update(folder, "config.json", model_type="x" * 10**6),
        r"model_type is 'x{1,60}\.\.\.; only",
    ),
    "deep JSON": (
        _deep_json,
        r"files are broken \(generation_config.json",
    ),
}


def plant_harmless(folder: Path) -> None:
    """Put code and pickles where a good checkpoint may have them, and nobody reads them."""
    plant_module(folder)
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", ".metadata"):
        plant_pickle(folder, name)
