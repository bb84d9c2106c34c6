"""Checkpoints, exported repositories and a running server, each made once a session and only when a test asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export.checkpoint import Checkpoint, open_checkpoint
from server.launch import TritonServer
from tests.random_checkpoint import write_checkpoint
from tests.reference import Reference

DEMONSTRATION = Path(__file__).resolve().parents[1] / "demo/vlembed-emoji"
ARCHITECTURES = ("tiny", "deep", "wide")  # tests.random_checkpoint says how they differ


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Write a random checkpoint of an architecture, once."""
    made: dict[str, Checkpoint] = {}

    def make(size: str) -> Checkpoint:
        if size not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / f"random-{size}"
            made[size] = open_checkpoint(str(write_checkpoint(folder, size)))
        return made[size]

    return make


@pytest.fixture(scope="session")
def repository_of(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Export an architecture to a deployable model repository, once."""
    made: dict[str, Path] = {}

    from export.__main__ import export  # its packages are not in the training environment, whose tests are here too

    def make(size: str) -> Path:
        if size not in made:
            made[size] = tmp_path_factory.mktemp("repositories") / size
            export(str(checkpoint_of(size).folder), made[size])
        return made[size]

    return make


@pytest.fixture(scope="session")
def checkpoint(checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    """Return a checkpoint with the proportions of the 2B."""
    return checkpoint_of("tiny")


@pytest.fixture(scope="session")
def repository(repository_of: Callable[[str], Path]) -> Path:
    """Return the exported repository of `checkpoint`."""
    return repository_of("tiny")


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    """Serve `repository`."""
    with TritonServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported repository of the demonstration's checkpoint."""
    from export.__main__ import export  # as above

    repository = tmp_path_factory.mktemp("repositories") / "demo"
    export(str(DEMONSTRATION), repository)
    return repository


@pytest.fixture(scope="session")
def demo_server(demo_repository: Path) -> Iterator[TritonServer]:
    """Serve the demonstration's checkpoint."""
    with TritonServer(demo_repository) as running:
        yield running


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> Reference:
    """Return what transformers makes of `checkpoint`."""
    return Reference(checkpoint)
