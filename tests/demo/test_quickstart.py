"""The quickstart on the demonstration's checkpoint: the right pictures come first, for names that it never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import build
from demo.quickstart import DEMONSTRATION, PICTURES, QUERIES
from demo.render_images import FONT, GLYPHS
from demo.symbols import training_picture
from server.launch import TritonServer

ROOT = Path(__file__).resolve().parents[2]
needs_sources = pytest.mark.skipif(
    not (FONT.is_file() and build.CLDR.is_dir()),
    reason=f"the emoji font or Unicode CLDR is missing: run `{build.INSTALL}`",
)


@pytest.mark.triton
def test_every_name_finds_its_picture(demo_server: TritonServer) -> None:
    command = [sys.executable, "demo/quickstart.py", demo_server.grpc_url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"served: {DEMONSTRATION} (fingerprint" in done.stdout
    assert "✗" not in done.stdout
    assert f"{len(QUERIES)} of {len(QUERIES)} find their picture first" in done.stdout
    assert "Photographs need the real one" in done.stdout


def test_every_trained_language_is_asked() -> None:
    assert sorted(query["language"] for query in QUERIES) == sorted(build.TRAINED)
    assert {query["image"] for query in QUERIES} <= {path.stem for path in PICTURES} == GLYPHS.keys()


@needs_sources
def test_the_names_are_held_out(tmp_path: Path) -> None:
    build.build(tmp_path / "data")
    lines = (tmp_path / "data/eval/names_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = {(row["id"], row["language"], row["text"]) for row in map(json.loads, lines)}
    symbols = {name: "-".join(f"{ord(character):x}" for character in glyph) for name, glyph in GLYPHS.items()}
    assert {(symbols[query["image"]], query["language"], query["text"]) for query in QUERIES} <= held_out


@needs_sources
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_the_pictures_are_drawn_as_training_sees_them(path: Path) -> None:
    with Image.open(path) as ours:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(training_picture(GLYPHS[path.stem])))
