"""The comparison with sentence-transformers on the demonstration's checkpoint, and a peer that cannot be started."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmark.environments import InstallError, pins, python_of
from benchmark.peers.comparison import IN_PROCESS, LIBRARY, OURS, REFERENCE, SERVED_PEERS, SYSTEMS, Comparison
from benchmark.peers.systems import Setup, System, split
from benchmark.workload import Item, make_items
from tests.conftest import DEMONSTRATION

ROOT = Path(__file__).resolve().parents[2]
TRAINING_PYTHON = Path(os.environ.get("TRAINING_VENV", ROOT / ".venv-training")) / "bin/python"


def stand_in(cache: Path, name: str, script: str) -> None:
    """Put an interpreter where the environment of a peer would be made."""
    folder = cache / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/python").chmod(0o755)
    (folder / "installed").write_text(pins(name), encoding="utf-8")


@pytest.fixture
def setup(tmp_path: Path, demo_repository: Path) -> Setup:
    """Return a cache where sentence-transformers is the training environment's, and LitServe's has nothing."""
    probe = [TRAINING_PYTHON, "-c", "import sentence_transformers"]
    if not TRAINING_PYTHON.exists() or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"{TRAINING_PYTHON} with sentence-transformers is missing: ./scripts/install --training")
    stand_in(tmp_path, "sentence-transformers", f'exec "{TRAINING_PYTHON}" "$@"')
    stand_in(tmp_path, "litserve", "echo no module named litserve; exit 1")
    return Setup(tmp_path, DEMONSTRATION, demo_repository, dtype="fp32", batch_size=1)


@pytest.mark.triton
def test_offline(setup: Setup) -> None:
    workloads = {name: make_items(name, 3) for name in ("queries", "images of 224 px", "text with image")}
    comparison = Comparison(setup, workloads, [OURS, IN_PROCESS, *LIBRARY, "LitServe"], seconds=0)
    comparison.calibrate()
    assert comparison.setup.dtype in ("bf16", "fp32")
    comparison.round()
    assert set(comparison.cosines) == {OURS, IN_PROCESS, *LIBRARY}
    assert min(comparison.cosines[name] for name in (OURS, IN_PROCESS, REFERENCE)) > 0.9999
    assert set(comparison.failed) == {"LitServe"}
    assert "no module named litserve" in comparison.failed["LitServe"]
    rows = comparison.rows()
    for workload in workloads:
        speed = {name: rows[f"{workload}: {name}, items/s"] for name in (OURS, IN_PROCESS, *LIBRARY)}
        best = max(speed[name] for name in LIBRARY)
        assert rows[f"{workload}: vlembed / sentence-transformers"] == pytest.approx(speed[OURS] / best)
        assert rows[f"{workload}: served / in process"] == pytest.approx(speed[OURS] / speed[IN_PROCESS])
        assert f"{workload}: vlembed / best server of the others" not in rows
    comparison.round()
    assert all(len(taken) == 2 for taken in comparison.rates.values())


class Constant(System):
    """Answers every item with the same vector."""

    name = "constant"
    vector = (1.0, 0.0)

    def _start(self, cleanup: ExitStack) -> None:
        pass

    def embed(self, items: list[Item]) -> np.ndarray:
        return np.array([self.vector] * len(items), np.float32)


@pytest.mark.parametrize(
    ("vector", "is_left_out"),
    [((1.0, 0.0), False), ((0.99, 0.141), False), ((0.0, 1.0), True), ((float("nan"), 0.0), True)],
)
def test_what_computes_something_else_is_left_out(
    vector: tuple[float, float], is_left_out: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Constant, "vector", vector)
    monkeypatch.setitem(SYSTEMS, Constant.name, Constant)
    setup = Setup(tmp_path, tmp_path, tmp_path, dtype="fp32", batch_size=1)
    workloads = {name: make_items(name, 3) for name in ("queries", "documents")}
    reference = {name: np.array([[1.0, 0.0]] * 3, np.float32) for name in workloads}
    comparison = Comparison(setup, workloads, [Constant.name], seconds=0, reference=reference)
    comparison.round()
    comparison.round()
    assert (Constant.name in comparison.failed) == is_left_out
    assert [len(taken) for taken in comparison.rates.values()] == ([] if is_left_out else [2, 2])
    assert ("queries: constant, items/s" in comparison.rows()) != is_left_out


@pytest.mark.parametrize("name", sorted({peer.requirements for peer in SERVED_PEERS} | {"plot"}))
def test_every_requirement_is_pinned(name: str) -> None:
    lines = [line.partition("#")[0].strip() for line in pins(name).splitlines() if not line.startswith(("#", "-r "))]
    assert lines
    assert all("==" in line for line in lines)


def test_what_pip_cannot_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.environments.PEERS", tmp_path)
    (tmp_path / "nothing.txt").write_text("./no-such-folder\n")
    with pytest.raises(InstallError, match="no-such-folder"):
        python_of(tmp_path / "cache", "nothing")


def test_packs_keep_order_and_bounds() -> None:
    items = make_items("images of 1024 px", 9) + make_items("queries", 40)
    packs = split(items)
    assert [item for pack in packs for item in pack] == items
    assert [len(pack) for pack in packs] == [4, 4, 16, 16, 9]
