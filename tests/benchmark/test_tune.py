"""The search over a repository's settings: what it writes, and what it chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.tune import KNOBS, THREADS, Knob, Score, change, parse, tune
from server.errors import ServerStartError

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


def worth(configs: dict[str, str]) -> Score:
    """Return a score that is best with two instances of the language tower and its threads at one."""
    instances, threads, *_ = KNOBS["language_model"]
    config = parse(configs["language_model"])
    value = 100.0 + 20 * (instances.read(config) == 2) + 10 * (threads.read(config) == 1)
    return Score(throughput=value, latency_ms=value)


def test_the_best_of_each_setting_is_kept() -> None:
    configs, chosen = tune(CONFIGS, worth, "throughput")
    assert chosen == {"language_model, instances": 2, "language_model, threads": 1}
    assert worth(configs).throughput == 130
    assert configs["preprocess"] == CONFIGS["preprocess"]


def test_latency_is_the_better_the_smaller() -> None:
    assert tune(CONFIGS, worth, "latency") == (CONFIGS, {})


def test_what_does_not_load_is_left_out() -> None:
    def loads_only_as_it_was(configs: dict[str, str]) -> Score:
        if configs != CONFIGS:
            raise ServerStartError("too much memory")
        return worth(configs)

    assert tune(CONFIGS, loads_only_as_it_was, "throughput") == (CONFIGS, {})
