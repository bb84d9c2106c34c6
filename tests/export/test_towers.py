"""The exported towers of three architectures against transformers, and what a lying request can do: nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint import Checkpoint
from export.validate import Case, Tower, reference_cases
from tests.conftest import ARCHITECTURES

COSINE = 0.9999  # fp32 on both sides: rounding only
CROWD_ATOL = 1e-4  # a matrix product may round differently for another number of rows

Towers = tuple[Tower, Tower]


@pytest.fixture(scope="module")
def towers_of(repository_of: Callable[[str], Path]) -> Callable[[str], Towers]:
    def load(size: str) -> Towers:
        repository = repository_of(size)
        language_inputs = ("input_ids", "position_ids", "lengths", "image_embeds")
        return (
            Tower(repository / "vision_encoder/1/model.onnx", ("patches", "grid_thw"), "image_embeds"),
            Tower(repository / "language_model/1/model.onnx", language_inputs, "pooled"),
        )

    return load


@pytest.fixture(scope="module")
def tiny(towers_of: Callable[[str], Towers]) -> Towers:
    return towers_of("tiny")


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_against_transformers(
    size: str, checkpoint_of: Callable[[str], Checkpoint], towers_of: Callable[[str], Towers]
) -> None:
    checkpoint, (vision, language) = checkpoint_of(size), towers_of(size)
    cases = [case for case in reference_cases(checkpoint, checkpoint.load_model()) if len(case.grid_thw)]
    requests = [{"patches": case.patches, "grid_thw": case.grid_thw} for case in cases]
    image_embeds = vision.run(requests)
    assert cosines(image_embeds, np.concatenate([case.image_embeds for case in cases])).min() >= COSINE
    # the language tower on the vision tower's own output, as it is served
    parts = np.split(image_embeds, np.cumsum([len(case.patches) for case in cases])[:-1])
    pooled = language.run([language_request([case], [part]) for case, part in zip(cases, parts, strict=True)])
    assert cosines(pooled, np.stack([case.hidden_state for case in cases])).min() >= COSINE


def language_request(cases: list[Case], parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.concatenate([case.input_ids for case in cases]),
        "position_ids": np.concatenate([case.position_ids for case in cases]),
        "lengths": np.array([len(case.input_ids) for case in cases], np.int32),
        "image_embeds": np.concatenate(parts),
    }


def random_vision_request(generator: np.random.Generator) -> dict[str, np.ndarray]:
    grids = [(1, 2 * generator.integers(1, 5), 2 * generator.integers(1, 5)) for _ in range(generator.integers(1, 4))]
    rows = sum(h * w // 4 for _, h, w in grids)
    return {"patches": generator.integers(0, 256, (rows, 6144), np.uint8), "grid_thw": np.array(grids, np.int32)}


def random_language_request(generator: np.random.Generator, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    lengths = generator.integers(1, 12, generator.integers(1, 5))
    ids = generator.integers(0, 250, lengths.sum())  # no special token below 250
    ids[generator.random(len(ids)) < 0.3] = checkpoint.config.image_token_id
    ids[0] = checkpoint.config.image_token_id  # never a tensor without elements
    num_visual = int((ids == checkpoint.config.image_token_id).sum())
    return {
        "input_ids": ids,
        "position_ids": np.concatenate([np.arange(n, dtype=np.int32)[:, None].repeat(3, 1) for n in lengths]),
        "lengths": lengths.astype(np.int32),
        "image_embeds": generator.standard_normal((num_visual, checkpoint.image_embeds_size), np.float32),
    }


def test_a_crowd_changes_nothing(tiny: Towers, checkpoint: Checkpoint) -> None:
    vision, language = tiny
    generator = np.random.default_rng(1)
    for tower, requests in (
        (vision, [random_vision_request(generator) for _ in range(16)]),
        (language, [random_language_request(generator, checkpoint) for _ in range(32)]),
    ):
        alone = np.concatenate([tower.run([request]) for request in requests])
        np.testing.assert_allclose(tower.run(requests), alone, atol=CROWD_ATOL)


VISION_LIES = {
    "grid too large": {"grid_thw": [[1, 4, 6]]},
    "grid too small": {"grid_thw": [[1, 2, 2]]},
    "odd grid": {"grid_thw": [[1, 1, 16]]},
    "two frames": {"grid_thw": [[2, 4, 4]]},
    "no rows": {"grid_thw": [[1, 0, 4], [1, 4, 4]]},
    "negative": {"grid_thw": [[1, -4, -4]]},
    "huge": {"grid_thw": [[1, 2**31 - 2, 2**31 - 2]]},
    "one image too many": {"grid_thw": [[1, 4, 4], [1, 2, 2]]},
    "a sum that overflows": {"grid_thw": [[1, 2**31 - 2, 2**31 - 2]] * 16 + [[1, 2**31 - 2, 64], [1, 8, 10]]},
}
LANGUAGE_LIES = {
    "lengths too long": {"lengths": [3, 6]},
    "lengths too short": {"lengths": [3, 4]},
    "zero length": {"lengths": [8, 0]},
    "negative length": {"lengths": [-1, 9]},
    "huge length": {"lengths": [2**31 - 1, 1]},
    "one item too many": {"lengths": [3, 5, 1]},
    "unknown token": {"input_ids": [1, 2, 3, 4, 5, 6, 7, 10**9]},
    "negative token": {"input_ids": [1, 2, 3, 4, 5, 6, 7, -1]},
    "positions missing": {"position_ids": np.zeros((7, 3))},
    "positions to spare": {"position_ids": np.zeros((9, 3))},
    "visual tokens to spare": {"image_embeds": 3},
    "visual tokens missing": {"image_embeds": 1},
}


def assert_only_the_liar_suffers(
    tower: Tower, honest: list[dict[str, np.ndarray]], liar: dict[str, np.ndarray], num_rows: int
) -> None:
    expected = [tower.run([request]) for request in honest]
    assert np.isnan(tower.run([liar])).all()
    for place in range(len(honest) + 1):
        output = tower.run([*honest[:place], liar, *honest[place:]])
        begin = sum(map(len, expected[:place]))
        assert np.isnan(output[begin : begin + num_rows]).all()
        others = np.concatenate([output[:begin], output[begin + num_rows :]])
        np.testing.assert_allclose(others, np.concatenate(expected), atol=CROWD_ATOL)


@pytest.mark.parametrize("name", VISION_LIES)
def test_a_lying_image_request_harms_nobody(tiny: Towers, name: str) -> None:
    generator = np.random.default_rng(2)
    liar = {"patches": generator.integers(0, 256, (4, 6144), np.uint8), "grid_thw": np.array([[1, 4, 4]], np.int32)}
    liar |= {key: np.array(value, np.int32) for key, value in VISION_LIES[name].items()}
    assert_only_the_liar_suffers(tiny[0], [random_vision_request(generator) for _ in range(3)], liar, num_rows=4)


@pytest.mark.parametrize("name", LANGUAGE_LIES)
def test_a_lying_text_request_harms_nobody(tiny: Towers, checkpoint: Checkpoint, name: str) -> None:
    generator = np.random.default_rng(3)
    pad, size = checkpoint.config.image_token_id, checkpoint.image_embeds_size
    liar = {
        "input_ids": np.array([1, pad, 3, 4, 5, pad, 7, 8]),
        "position_ids": np.arange(8, dtype=np.int32)[:, None].repeat(3, 1),
        "lengths": np.array([3, 5], np.int32),
        "image_embeds": np.ones((2, size), np.float32),
    }
    assert np.isfinite(tiny[1].run([liar])).all()  # honest so far
    for key, value in LANGUAGE_LIES[name].items():
        if key == "image_embeds":
            value = np.ones((value, size))
        elif key == "input_ids":
            value = np.where(np.isin(np.arange(8), [1, 5]), pad, value)
        liar[key] = np.array(value, liar[key].dtype)
    honest = [random_language_request(generator, checkpoint) for _ in range(3)]
    assert_only_the_liar_suffers(tiny[1], honest, liar, num_rows=len(liar["lengths"]))


def run_as_stock(tower: Tower, requests: list[dict[str, np.ndarray]], stale: dict[str, np.ndarray]) -> np.ndarray:
    """Run a batch as NVIDIA's backend packs it: from the first request without elements on, a buffer is as it was."""
    feed = {}
    for name in tower.names:
        parts = [request[name].reshape(-1) for request in requests]
        feed[name] = np.concatenate(parts)
        feed[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)], dtype=np.int32)
        first_empty = next((index for index, part in enumerate(parts) if not len(part)), len(parts))
        copied = feed[f"{name}_offsets"][first_empty]
        feed[name][copied:] = np.resize(stale[name], len(feed[name]))[copied:]
    return np.asarray(tower.session.run(None, feed)[0])


def stale_buffers(
    kind: str, names: tuple[str, ...], others: list[dict[str, np.ndarray]], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return what may lie in the buffers: an earlier batch, zeros or anything."""
    earlier = {name: np.concatenate([request[name].reshape(-1) for request in others]) for name in names}
    if kind == "earlier batch":
        return earlier
    if kind == "zeros":
        return {name: np.zeros_like(values) for name, values in earlier.items()}
    return {name: np.frombuffer(generator.bytes(values.nbytes), values.dtype) for name, values in earlier.items()}


@pytest.mark.parametrize("stale", ["earlier batch", "zeros", "garbage"])
@pytest.mark.parametrize("size", ["tiny", "deep"])
def test_a_request_without_elements_leaves_no_row_of_its_batch(
    towers_of: Callable[[str], Towers], checkpoint_of: Callable[[str], Checkpoint], size: str, stale: str
) -> None:
    generator = np.random.default_rng(4)
    checkpoint, (vision, language) = checkpoint_of(size), towers_of(size)
    for tower, new_request in (
        (vision, lambda: random_vision_request(generator)),
        (language, lambda: random_language_request(generator, checkpoint)),
    ):
        subsets = [names for n in range(len(tower.names)) for names in itertools.combinations(tower.names, n + 1)]
        for names, place in itertools.product(subsets, range(4)):
            requests = [new_request() for _ in range(3)]
            bad = new_request()
            requests.insert(place, bad | {name: bad[name][:0] for name in names})
            buffers = stale_buffers(stale, tower.names, [new_request() for _ in range(5)], generator)
            output = run_as_stock(tower, requests, buffers)
            assert len(output) and np.isnan(output).all(), (names, place)


def test_two_requests_without_elements_leave_no_row_of_their_batch(tiny: Towers, checkpoint: Checkpoint) -> None:
    generator = np.random.default_rng(5)
    for first, second in itertools.product(tiny[1].names, repeat=2):
        honest, *bad = (random_language_request(generator, checkpoint) for _ in range(3))
        bad = [request | {name: request[name][:0]} for request, name in zip(bad, (first, second), strict=True)]
        earlier = random_language_request(generator, checkpoint)
        for requests in itertools.permutations([honest, *bad]):
            assert np.isnan(run_as_stock(tiny[1], list(requests), earlier)).all(), (first, second)


def test_what_a_request_without_items_says_reaches_nobody(tiny: Towers, checkpoint: Checkpoint) -> None:
    generator = np.random.default_rng(6)
    victim = random_language_request(generator, checkpoint)
    attacker = random_language_request(generator, checkpoint)
    attacker |= {"lengths": attacker["lengths"][:0]}
    assert np.isnan(tiny[1].run([victim, attacker])).all()
    assert np.isfinite(tiny[1].run([victim])).all()
