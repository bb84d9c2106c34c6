"""URLs where a path of this machine is meant: refused by every command, which then writes nothing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from demo import paths as demo
from export import paths as export
from finetune import paths as finetune
from server import paths as server

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [demo, export, finetune, server]
in_every_folder = pytest.mark.parametrize("module", FOLDERS, ids=lambda module: module.__name__)


@in_every_folder
@pytest.mark.parametrize(
    "value", ["s3://bucket/out", "gs://b", "hdfs:///o", "file:///o", "S3:/o", " az://b", "a-b+1.c://x"]
)
def test_a_url_is_no_path(module: ModuleType, value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is a URL, and only files of this machine .* pass a path"):
        module.local_path(value)


@in_every_folder
@pytest.mark.parametrize("value", ["out", "/out", "../a b", "C:/out", "a:b", "./s3", "out:", "日本/o"])
def test_a_path_is_one(module: ModuleType, value: str) -> None:
    assert module.local_path(value) == Path(value)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["export", "--checkpoint", "none", "--output"], "--output"),
        (["server", "--repository"], "--repository"),
        (["demo.build", "--output"], "--output"),
        (["demo.adapt", "--output"], "--output"),
        (["demo.bulk", "--url", "grpc://127.0.0.1:1", "--data", ".", "--output"], "--output"),
        (["demo.measure", "--url", "grpc://127.0.0.1:1", "--output", ".", "--data"], "--data"),
        (["benchmark.perf_analyzer", "--repository"], "--repository"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_a_command_refuses_a_url(tmp_path: Path, command: list[str], option: str) -> None:
    folders = [ROOT, ROOT / "client", ROOT / "model_repository/preprocess/1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-m", *command, "s3://bucket/out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"argument {option}: 's3://bucket/out' is a URL" in done.stderr
    assert not list(tmp_path.iterdir())
