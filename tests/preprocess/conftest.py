"""A preprocessor on the small files of a random checkpoint; nothing is exported or served here."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoint import Checkpoint
from export.repository import write_json
from preprocessing import Bounds, Preprocessor


@pytest.fixture(scope="session")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what export puts beside preprocessing.py."""
    folder = tmp_path_factory.mktemp("preprocess")
    checkpoint.copy_tokenizer(folder)
    write_json(folder / "preprocessing.json", checkpoint.preprocessing())
    return folder


@pytest.fixture(scope="session")
def preprocessor(folder: Path) -> Preprocessor:
    """Return a preprocessor with the default bounds."""
    return Preprocessor(folder, Bounds())
