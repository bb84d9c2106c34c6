"""The same shards, embedded by two workers of a Ray on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.client.bulk.conftest import Run, read_folder
from tests.client.conftest import INFO, MemoryTransport
from vlembed import InvalidInputError
from vlembed.bulk import verify
from vlembed.bulk._manifest import read_manifest
from vlembed.bulk._shards import FileRecord

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[data]'")
pytestmark = pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def two_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def vector_files(output: Path) -> list[FileRecord]:
    return list(read_manifest(output).vector_files())


def test_a_run_on_ray_writes_the_same_files(run: Run, texts: Path, output: Path, tmp_path: Path) -> None:
    report = run(texts, engine="ray", num_workers=2)
    ours = vector_files(output)
    assert verify(output) == replace(report, ignored=None, duplicate_ids={})
    output.rename(tmp_path / "ray")
    assert run(texts) == report
    assert vector_files(output) == ours  # their checksums, too


def test_either_engine_goes_on_with_the_other(run: Run, texts: Path, output: Path) -> None:
    report = run(texts)
    lines = (output / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (output / "manifest.jsonl").write_bytes(b"".join(lines[:2]))
    assert run(texts, engine="ray") == report
    assert run(texts, engine="ray", retry_errors=True) == report
    assert run(texts, engine="ray") == report
    assert len(read_folder(output / "shards")) == 30


class AnotherModel(MemoryTransport):
    """Answers, in a worker of Ray, that it has been given another model."""

    def infer(self, model: str, *arguments: Any) -> Any:
        if model == "info" and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
            INFO["fingerprint"] = "another"
        return super().infer(model, *arguments)


def test_what_a_worker_raises_comes_out_as_it_is(run: Run, texts: Path) -> None:
    with pytest.raises(InvalidInputError, match="the server now has 'another'"):
        run(texts, engine="ray", client_options={"transport": AnotherModel()})
