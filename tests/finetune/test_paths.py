"""URLs where a path of this machine is meant are refused by the commands that train and evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import command, evaluate, mine
from finetune.training import TrainingError, TrainingOptions, fine_tune

TRAIN = ["--checkpoint", "c", "--train", "rows.jsonl", "--output", "out"]
EVALUATE = ["--checkpoint", "c", "--pairs", "name=rows.jsonl", "--output", "out"]
MINE = ["--checkpoint", "c", "--data", "rows.jsonl", "--output", "out.jsonl"]


@pytest.mark.parametrize(
    ("parse", "fine", "option", "value"),
    [
        *((command.parse, TRAIN, option, "s3://b/o") for option in ("--train", "--eval", "--output")),
        *((mine._parse, MINE, option, "gs://b/o") for option in ("--data", "--corpus", "--output")),
        (evaluate.parse, EVALUATE, "--output", "file:///o"),
        (evaluate.parse, EVALUATE, "--pairs", "name=s3://b/rows.jsonl"),
        (evaluate.parse, EVALUATE, "--retrieval", "name=s3://b/rows.jsonl"),
    ],
)
def test_a_url_is_no_path(
    parse: Callable[[list[str]], Any],
    fine: list[str],
    option: str,
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parse(fine)
    with pytest.raises(SystemExit):
        parse([*fine, option, value])
    assert f"argument {option}: '{value}' is " in capsys.readouterr().err


@pytest.mark.parametrize("url", ["s3://bucket/tuned", "gs://b", "hdfs:///t"])
def test_a_url_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    rows: Any = []  # not looked at
    with pytest.raises(TrainingError, match="is a URL"):
        fine_tune("checkpoint", rows, None, Path(url), TrainingOptions())
    assert not list(tmp_path.iterdir())
