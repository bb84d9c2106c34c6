"""Known beginnings: what an item skips, what it must not, and that its vector stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.__main__ import INSTRUCTIONS
from export.checkpoint import Checkpoint
from export.language_model import LanguageModel
from export.operators import FusedOperators
from export.packing import Segments
from export.prefixes import Prefixes
from export.reference import lay_out
from export.to_onnx import example_language_inputs, to_onnx
from vlembed._client import DEFAULT_QUERY_INSTRUCTION

Request = dict[str, np.ndarray]


def segments_of(lengths: list[int]) -> Segments:
    tensor = torch.tensor(lengths)
    rows = torch.zeros(sum(lengths), dtype=torch.int64)
    return Segments(tensor.cumsum(0) - tensor, tensor, torch.zeros_like(tensor), rows, torch.tensor([True]))


def test_the_longest_beginning_is_found() -> None:
    prefixes = Prefixes([[5, 6], [5, 6, 7], [9]])
    items = [[5, 6, 8], [5, 6, 7, 1], [5, 6, 7], [9], [9, 9], [6, 5, 7], [1]]
    lengths = [len(item) for item in items]
    ids = torch.tensor([token for item in items for token in item])
    positions = torch.cat([torch.arange(length) for length in lengths])[:, None].repeat(1, 3)
    numbers = prefixes.find(ids, positions, segments_of(lengths))
    # Of an item that is nothing but a beginning, a token is left.
    assert [prefixes.beginnings[number] for number in numbers] == [[5, 6], [5, 6, 7], [5, 6], [], [9], [], []]
    rows, left, sources = prefixes.leave_out(numbers, segments_of(lengths), len(ids))
    assert ids[rows].tolist() == [8, 1, 7, 9, 9, 6, 5, 7, 1] and left.tolist() == [1, 1, 1, 1, 1, 3, 1]
    known = torch.tensor([token for tokens in prefixes.beginnings for token in tokens])
    assert torch.equal(torch.cat([known, ids[rows]])[sources], ids)
    positions[0, 2] = 1  # counted in another way
    assert prefixes.find(ids, positions, segments_of(lengths))[0] == 0


def test_the_clients_instructions_are_known() -> None:
    assert DEFAULT_QUERY_INSTRUCTION in INSTRUCTIONS


@pytest.fixture(scope="module")
def sessions(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    """Load the language tower without known beginnings, and with two."""
    folder = tmp_path_factory.mktemp("prefixes")
    model = checkpoint.load_model().language_model
    inputs = example_language_inputs(
        checkpoint.vocab_size, checkpoint.config.image_token_id, checkpoint.image_embeds_size
    )
    made = []
    for name, known in (("full", False), ("known", True)):
        tower = LanguageModel(model, checkpoint.config.image_token_id, checkpoint.num_deepstack, FusedOperators())
        if known:
            tower.know([checkpoint.beginning(instruction) for instruction in INSTRUCTIONS])
        to_onnx(tower, inputs, "pooled", folder / f"{name}.onnx")
        made.append(onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"]))
    return made[0], made[1]


def request_of(checkpoint: Checkpoint, items: list[tuple[str, str, int]]) -> Request:
    """Return a pack of (instruction, text, visual tokens) items, and the sentinel."""
    ids, positions, lengths, num_visual = [], [], [], 1
    for instruction, text, num_image_tokens in items:
        content = [{"type": "image"}] if num_image_tokens else []
        prompt = checkpoint.render(instruction, [*content, {"type": "text", "text": text}])
        tokens = checkpoint.tokenizer(
            prompt.replace(checkpoint.image_token, checkpoint.image_token * max(num_image_tokens, 1))
        )["input_ids"]
        ids += tokens
        positions += [np.arange(len(tokens))]
        lengths.append(len(tokens))
        num_visual += num_image_tokens
    generator = np.random.default_rng(0)
    return {
        "input_ids": np.array([*ids, checkpoint.config.image_token_id]),
        "position_ids": np.repeat(np.concatenate([*positions, [0]]), 3).astype(np.int32),
        "lengths": np.array([*lengths, 1], np.int32),
        "image_embeds": generator.standard_normal((num_visual, checkpoint.image_embeds_size), np.float32),
    }


ITEMS = [
    (INSTRUCTIONS[0], "a", 0),
    (INSTRUCTIONS[1], "two cats sleep on a sofa " * 40, 0),
    ("Find it.", "a red car", 0),
    (INSTRUCTIONS[0], "a red car", 9),
    (INSTRUCTIONS[1], "\n\na text that begins with line breaks", 0),
    (INSTRUCTIONS[0], "", 4),
]


def test_vectors_stay_what_they_were(
    checkpoint: Checkpoint, sessions: tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]
) -> None:
    full, known = sessions
    packs = [request_of(checkpoint, ITEMS), *(request_of(checkpoint, [item]) for item in ITEMS)]
    for batch in (packs, packs[:1], *([pack] for pack in packs[1:])):
        feed = lay_out(batch)
        ours, theirs = (session.run(None, feed)[0] for session in (known, full))
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_beginning_is_really_taken_from_the_table(
    checkpoint: Checkpoint, sessions: tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession], tmp_path: Path
) -> None:
    """With another beginning in the table, items that have it change, and no others."""
    tower = LanguageModel(
        checkpoint.load_model().language_model,
        checkpoint.config.image_token_id,
        checkpoint.num_deepstack,
        FusedOperators(),
    )
    tower.know([checkpoint.beginning(INSTRUCTIONS[0])])
    for state in tower.known:
        state.data.zero_()
    feed = lay_out([request_of(checkpoint, ITEMS)])
    with torch.no_grad():
        spoilt = tower(**{name: torch.from_numpy(array) for name, array in feed.items()}).numpy()
    changed = ~np.isclose(spoilt, sessions[0].run(None, feed)[0], atol=1e-3).all(axis=1)
    assert changed[:-1].tolist() == [instruction == INSTRUCTIONS[0] for instruction, _, _ in ITEMS]


def test_a_lying_request_harms_nobody(
    checkpoint: Checkpoint, sessions: tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]
) -> None:
    honest = request_of(checkpoint, ITEMS[:3])
    expected = sessions[1].run(None, lay_out([honest]))[0]
    for change in (+1, -1, 10**6, -(10**6)):
        liar = {**honest, "lengths": honest["lengths"] + np.array([change, 0, 0, 0], np.int32)}
        for batch, own in (([liar, honest], slice(4, 8)), ([honest, liar], slice(0, 4))):
            output = sessions[1].run(None, lay_out(batch))[0]
            np.testing.assert_allclose(output[own], expected, atol=2e-5)
            assert np.isnan(np.delete(output, own, axis=0)).all()
