"""The committed checkpoint: what it holds, what it came from, and the numbers that its card and README tell."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from demo import build
from demo.measure import TASKS
from demo.render_images import FONT
from tests.conftest import DEMONSTRATION

ROOT = Path(__file__).resolve().parents[2]
MAX_SIZE_BYTES = 16_000_000
RESULTS: dict[str, Any] = json.loads((DEMONSTRATION / "evaluation/results.json").read_text(encoding="utf-8"))
MEASURED = {task["name"]: task for task in RESULTS["tasks"]}


def read(name: str) -> Any:
    return json.loads((DEMONSTRATION / "training" / name).read_text(encoding="utf-8"))


def test_weights_are_small_and_bfloat16() -> None:
    (path,) = DEMONSTRATION.glob("*.safetensors")
    assert path.stat().st_size <= MAX_SIZE_BYTES
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_transformers_loads_it_whole() -> None:
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(DEMONSTRATION, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    text, vision = model.config.text_config, model.config.vision_config
    assert len(vision.deepstack_visual_indexes) == 3 and text.num_key_value_heads < text.num_attention_heads
    assert text.rope_parameters["mrope_interleaved"]


def test_the_log_is_of_the_whole_run() -> None:
    run = read("options.json")
    with (DEMONSTRATION / "training/log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["name"] == "loss"]
    assert steps == list(range(run["log_steps"], run["max_steps"] + 1, run["log_steps"]))
    assert run["rows"] == read("data.json")["lines"]["train"]


@pytest.mark.skipif(
    not (FONT.is_file() and build.CLDR.is_dir()),
    reason=f"the emoji font or Unicode CLDR is missing: run `{build.INSTALL}`",
)
def test_the_data_is_what_build_makes(tmp_path: Path) -> None:
    assert build.build(tmp_path / "data") == read("data.json")


def test_every_split_was_measured_through_a_server() -> None:
    assert list(MEASURED) == list(TASKS)
    assert RESULTS["model"]["url"].startswith("grpc://") and RESULTS["model"]["checkpoint"] == DEMONSTRATION.name


@pytest.mark.parametrize("path", ["README.md", "demo/vlembed-emoji/README.md"])
def test_the_numbers_told_are_the_measured_ones(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:text|image|name) to [^|]*?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert [name for name, *_ in rows] == list(TASKS)
    for name, *told in rows:
        assert told == [f"{MEASURED[name][metric]:.3f}" for metric in ("recall@1", "recall@10", "mrr@10")], name
