"""A deployable copy of model_repository/, with the sizes of a checkpoint filled in.

Knows folders and configs; knows nothing of models.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .errors import ExportError
from .paths import is_url

TEMPLATE = Path(__file__).resolve().parents[1] / "model_repository"
MARKS = ("embed/config.pbtxt", "info/1/info.json")  # by which a folder is known as one of ours
NOT_SERVED = ("checkpoint_files.py", "settings.py")  # of those who load a checkpoint
HIDDEN_SIZE_2B = 2048
IMAGE_EMBEDS_SIZE_2B = 8192


@contextmanager
def new_repository(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `output` to build in; it takes its place when all went well, and else it goes.

    Raises
    ------
    ExportError
        `output` is a URL, exists and `overwrite` is false, or is no model repository.
    """
    if is_url(output):
        raise ExportError(f"{output} is a URL. Write to a folder of this machine, and copy it there.")
    output = output.resolve()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        if not all((output / file).is_file() for file in MARKS):
            raise ExportError(f"{output} exists and is no model repository. Pass another --output.")
        if not overwrite:
            raise ExportError(f"{output} exists already. Pass --overwrite to replace it, or another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        partial = Path(folder) / "repository"
        left_out = shutil.ignore_patterns("__pycache__", ".*", "*.onnx*", *NOT_SERVED)
        shutil.copytree(TEMPLATE, partial, ignore=left_out)
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)


def fill_sizes(repository: Path, hidden_size: int, image_embeds_size: int) -> None:
    """Rewrite the 2B's sizes in every `dims`; comments and everything else stay as written."""
    sizes = {HIDDEN_SIZE_2B: hidden_size, IMAGE_EMBEDS_SIZE_2B: image_embeds_size}

    def resize(dims: re.Match[str]) -> str:
        return re.sub(r"\d+", lambda size: str(sizes.get(int(size[0]), size[0])), dims[0])

    for path in repository.rglob("*.pbtxt"):
        path.write_text(re.sub(r"dims: \[[^\]]*\]", resize, path.read_text(encoding="utf-8")), encoding="utf-8")


def drop_configs(repository: Path, variants: Collection[str]) -> None:
    """Remove the configs of variants that the repository does not hold."""
    for path in repository.glob("*/configs/*.pbtxt"):
        if path.stem not in variants:
            path.unlink()
    for folder in repository.glob("*/configs"):
        if not any(folder.iterdir()):
            folder.rmdir()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file for people to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
