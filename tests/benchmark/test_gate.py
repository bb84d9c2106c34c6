"""The gate's arithmetic: which ratios count as fallen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.gate import worse

RATIO = "queries: vlembed / sentence-transformers"


def committed(folder: Path, **results: float) -> Path:
    path = folder / "before.json"
    path.write_text(json.dumps({"results": {RATIO: 2.0, **results}}))
    return path


@pytest.mark.parametrize(
    ("now", "passes"), [(2.0, True), (1.81, True), (1.79, False), (9.0, True), (0.0, False), (float("nan"), False)]
)
def test_a_ratio_may_fall_by_the_tolerance(tmp_path: Path, now: float, passes: bool) -> None:
    assert (worse({RATIO: now}, committed(tmp_path), tolerance=0.1) == []) == passes


def test_the_tolerance_is_a_share_of_the_ratio(tmp_path: Path) -> None:
    assert worse({RATIO: 1.5}, committed(tmp_path), tolerance=0.3) == []
    assert worse({RATIO: 1.5}, committed(tmp_path), tolerance=0.2) == [f"{RATIO}: 2.00 before, 1.50 now"]


def test_rates_are_left_alone(tmp_path: Path) -> None:
    before = committed(tmp_path, **{"queries: vlembed, items/s": 100.0})
    assert worse({RATIO: 2.0, "queries: vlembed, items/s": 1.0}, before) == []


def test_what_is_not_measured_any_more_fails(tmp_path: Path) -> None:
    assert worse({}, committed(tmp_path)) == [f"{RATIO}: 2.00 before, not measured now"]


def test_a_file_that_could_not_fail_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"results": {"texts/s": 3.0}}))
    with pytest.raises(ValueError, match="no ratio"):
        worse({RATIO: 2.0}, path)
