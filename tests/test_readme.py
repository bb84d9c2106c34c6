"""README.md against the code: what it says of tensors, files, commands and numbers, and what its Python prints."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as triton

import vlembed.bulk
from server.launch import TritonServer
from tests.test_configs import ENSEMBLES, STEPS, tensors

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "grpc://127.0.0.1:8001"
MARK = "end of a block"


def section(title: str) -> str:
    """Return the text under a heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_order() -> None:
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    wanted = ["Two commands", "Six lines of Python", "The tensor contract", "File map", "Numbers", "Known limits"]
    wanted += ["Licence"]
    assert [title for title in titles if title in wanted] == wanted


@pytest.mark.triton
def test_the_python_prints_what_it_says(demo_server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sections = section("Six lines of Python") + section("Search")
    code = "\n".join(re.findall(r"```python\n(.*?)```", sections, re.DOTALL)).replace(URL, demo_server.grpc_url)
    test = doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    with np.printoptions(suppress=True):
        result = runner.run(test, out=report.append, clear_globs=False)
    test.globs["client"].close()
    assert result.attempted >= 6
    assert not result.failed, "".join(report)


@pytest.mark.triton
def test_the_command_prints_what_it_says(demo_server: TritonServer, user_folder: Path) -> None:
    (block,) = re.findall(r"```console\n(.*?)```", section("The command"), re.DOTALL)
    environment = os.environ | {"VLEMBED_URL": demo_server.grpc_url, "PYTHONPATH": str(ROOT / "client")}
    for command, told in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
        words = shlex.split(command)
        assert words[0] == "vlembed"
        form = ["--format", "table"] if words[1] == "search" else []  # as on a terminal
        done = subprocess.run(
            [sys.executable, "-m", *words, *form],
            cwd=user_folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.stdout, done.returncode) == (told, 0)
    assert "<img" in (user_folder / "found.html").read_text(encoding="utf-8")


@pytest.mark.triton
def test_the_manual_of_the_client_prints_what_it_says(demo_server: TritonServer, user_folder: Path) -> None:
    manual = (ROOT / "client/README.md").read_text(encoding="utf-8").replace(URL, demo_server.grpc_url)
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", manual, re.DOTALL)
    assert len(blocks) == manual.count("```python")
    script = "\n".join(f"{code}\nprint({MARK!r})" for code, _ in blocks)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=user_folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(f"{MARK}\n")[:-1] == [told for _, told in blocks]


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """Return a folder with the images of demo/, to write to."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "ca.pem").touch()  # read when a connection is made
    return tmp_path


def test_the_manual_of_the_client_tells_of_every_public_name() -> None:
    manual = (ROOT / "client/README.md").read_text(encoding="utf-8")
    public = {*vlembed.__all__, *vlembed.bulk.__all__}
    assert {name for name in public if not re.search(rf"\b{name}\b", manual)} == set()


def test_the_tensor_contract() -> None:
    rows = re.findall(
        r"^\| (\*{0,2}`.*?) \| ([A-Z0-9]+) (\[.*?\])(.*?) \|", section("The tensor contract"), re.MULTILINE
    )
    written = {name for cell, *_ in rows for name in re.findall(r"`(\w+)`", cell)}
    served = {name for model in ENSEMBLES for side in ("input", "output") for name in tensors(model, side)}
    assert written == served
    types = {"BYTES": "TYPE_STRING", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
    for cell, data_type, _, remark in rows:
        for name in re.findall(r"`(\w+)`", cell):
            tensor = (tensors("embed", "input") | tensors("embed", "output"))[name]
            assert triton.DataType.Name(tensor.data_type) == types[data_type]
            in_text = name in tensors("embed_text", "input") | tensors("embed_text", "output")
            assert ("`embed` only" in remark) == (not in_text)


def test_the_figure_names_every_step() -> None:
    (figure,) = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert {name for name in STEPS if f"{name}((" in figure} == set(STEPS)


def test_the_file_map() -> None:
    (tree,) = re.findall(r"```\n(.*?)```", section("File map"), re.DOTALL)
    named, parent = set(), Path()
    for line in tree.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        if not line.startswith(" "):
            parent = Path(names[0])
        named |= {parent / name if line.startswith(" ") else Path(name) for name in names}
    for path in named:
        assert (ROOT / path).exists(), path
    top_level = {path.split("/")[0] for path in tracked_files() if "/" in path}
    assert top_level - {".ci"} <= {path.parts[0] for path in named}
    models = {path.name for path in (ROOT / "model_repository").iterdir()}
    assert models == {path.name for path in named if path.parts[0] == "model_repository" and len(path.parts) == 2}


def test_commands_and_links_exist() -> None:
    for script in re.findall(r"\./(scripts/[\w-]+)", README):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m ([\w.]+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("part", section("Numbers").split("\n### ")[1:], ids=lambda part: part.partition("\n")[0])
def test_numbers_are_the_measured_ones(part: str) -> None:
    """Hold each table under Numbers against the files of results that it links.

    A column of a wide table has the end of a result's name as its header, and each of its rows the beginning.
    """
    results: dict[str, float] = {}
    for file in re.findall(r"\]\((benchmark/results/[\w.-]+\.json)\)", part):
        measured = json.loads((ROOT / file).read_text(encoding="utf-8"))
        results |= measured["results"]
        assert measured["date"] in part
        assert measured["commit"] in part
    for table in re.findall(r"(?:^\|.*\|\n)+", part, re.MULTILINE):
        header, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        assert rows
        for what, *values in rows:
            names = [what] if len(values) == 1 else [f"{what}: {column}" for column in header]
            assert len(names) == len(values), what
            for name, value in zip(names, values, strict=True):
                number = value.strip("*")
                decimals = len(number.partition(".")[2])
                assert number == "–" or f"{results[name]:,.{decimals}f}" == number, name


def test_every_result_is_told() -> None:
    assert {path.name for path in (ROOT / "benchmark/results").iterdir()} == set(
        re.findall(r"benchmark/results/([\w.-]+\.\w+)\)", section("Numbers"))
    )
