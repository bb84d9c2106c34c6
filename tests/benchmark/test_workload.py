"""The items that every system gets, and the schedule of a Poisson process."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmark.workload import MIX, NUM_ITEMS, is_text, make_items, poisson_arrivals


@pytest.mark.parametrize("workload", NUM_ITEMS)
def test_items_are_the_same_every_time(workload: str) -> None:
    items = make_items(workload, 5, seed=3)
    assert len(items) == 5
    assert items == make_items(workload, 5, seed=3)
    assert items != make_items(workload, 5, seed=4)


@pytest.mark.parametrize("side_px", [224, 512, 1024])
def test_images_have_the_size_that_their_name_says(side_px: int) -> None:
    for text, image in make_items(f"images of {side_px} px", 3):
        assert text == ""
        assert Image.open(io.BytesIO(image)).size == (side_px, side_px)


def test_which_workloads_are_text() -> None:
    assert {name for name in NUM_ITEMS if is_text(make_items(name, 40))} == {"queries", "documents"}


def test_the_mix_is_a_whole() -> None:
    assert sum(MIX.values()) == pytest.approx(1)
    items = make_items("mix", 2000)
    assert np.mean([bool(image) for _, image in items]) == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(("rate", "seconds"), [(5.0, 400.0), (50.0, 40.0), (0.5, 4000.0)])
def test_arrivals_are_a_poisson_process(rate: float, seconds: float) -> None:
    times = poisson_arrivals(rate, seconds, seed=1)
    gaps = np.diff(times, prepend=0.0)
    assert (gaps > 0).all()
    assert times[-1] <= seconds
    deviation = np.sqrt(rate * seconds)
    assert abs(len(times) - rate * seconds) < 4 * deviation
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # of an exponential distribution
    assert np.mean(gaps < 1 / rate) == pytest.approx(1 - np.exp(-1), abs=0.04)


def test_a_schedule_repeats_and_is_never_empty() -> None:
    assert poisson_arrivals(3.0, 10.0, seed=2).tolist() == poisson_arrivals(3.0, 10.0, seed=2).tolist()
    assert len(poisson_arrivals(0.001, 0.1)) == 1
