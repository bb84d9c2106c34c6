"""The search over a repository's settings: what it writes, and what it chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.tune import KNOBS, MIN_GAIN, THREADS, Knob, change, parse, tune
from benchmark.tune import gain as gain_of
from server.errors import ServerStartError
from vlembed import EmbeddingClient

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
CONFIGS = {model: (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8") for model in KNOBS}
CASES = [(model, knob, value) for model, knobs in KNOBS.items() for knob in knobs for value in (*knob.values, 7)]


@pytest.mark.parametrize(("model", "knob", "value"), CASES, ids=lambda case: getattr(case, "name", str(case)))
def test_a_value_is_written_and_nothing_else(model: str, knob: Knob, value: int) -> None:
    changed = parse(change(CONFIGS[model], knob, value))
    assert knob.read(changed) == value
    before = parse(CONFIGS[model])
    for name in ("input", "output", "batch_input", "batch_output"):
        assert getattr(changed, name) == getattr(before, name)
    others = [other for other in KNOBS[model] if other is not knob]
    assert [other.read(changed) for other in others] == [other.read(before) for other in others]


@pytest.mark.parametrize(("model", "knob", "value"), CASES, ids=lambda case: getattr(case, "name", str(case)))
def test_a_value_can_be_changed_again(model: str, knob: Knob, value: int) -> None:
    text = change(change(CONFIGS[model], knob, value), knob, 3)
    assert knob.read(parse(text)) == 3
    assert text.count(THREADS) <= 1


def test_a_config_of_another_style_is_refused() -> None:
    (instances,) = KNOBS["preprocess"]
    with pytest.raises(ValueError, match="instances could not be set to 2"):
        change('name: "preprocess"\ninstance_group { count: 1 }\n', instances, 2)


def worth(configs: dict[str, str]) -> float:
    """Return a value that is best with two instances of the language tower of one thread each."""
    instances, threads, *_ = KNOBS["language_model"]
    config = parse(configs["language_model"])
    return 100.0 + 20 * (instances.read(config) == 2) + 10 * (threads.read(config) == 1)


def gain(present: dict[str, str], candidate: dict[str, str]) -> float:
    return worth(candidate) / worth(present)


def test_the_best_of_each_setting_is_kept() -> None:
    configs, chosen = tune(CONFIGS, gain)
    assert chosen == {"language_model, instances": 2, "language_model, threads": 1}
    assert worth(configs) == 130
    assert configs["preprocess"] == CONFIGS["preprocess"]


def test_what_gains_no_more_than_noise_is_not_taken() -> None:
    assert tune(CONFIGS, lambda present, candidate: MIN_GAIN) == (CONFIGS, {})


def test_what_does_not_load_is_left_out() -> None:
    def loads_only_as_it_was(present: dict[str, str], candidate: dict[str, str]) -> float:
        raise ServerStartError("too much memory")

    assert tune(CONFIGS, loads_only_as_it_was) == (CONFIGS, {})


@pytest.mark.triton
def test_two_configs_are_served_in_turns(repository: Path) -> None:
    texts = {model: (repository / model / "config.pbtxt").read_text(encoding="utf-8") for model in KNOBS}
    (instances,) = KNOBS["preprocess"]
    other = {**texts, "preprocess": change(texts["preprocess"], instances, 1)}
    seen: list[EmbeddingClient] = []

    def work(client: EmbeddingClient) -> None:
        seen.append(client)
        client.embed(["a", "b"])

    assert gain_of(repository, [texts, other], work, rounds=2) > 0
    first, second = dict.fromkeys(seen)
    assert seen == [first, second] * 3  # the first time to warm
    assert (repository / "preprocess/config.pbtxt").read_text(encoding="utf-8") == texts["preprocess"]
