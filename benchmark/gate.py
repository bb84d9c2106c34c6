"""A gate against losing speed unnoticed: the ratios of a run against those of the run that is committed.

Rates change with the machine and its neighbours, ratios of one run much less. Rows whose name holds ` / ` are ratios,
the higher the better; other rows are left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOLERANCE = 0.10  # of a ratio: what runs on a shared machine differ by


def worse(now: dict[str, Any], before: Path, tolerance: float = TOLERANCE) -> list[str]:
    """Return a sentence for each ratio that fell by more than `tolerance`, or is missing, since the run `before`.

    Parameters
    ----------
    now
        Rows of this run.
    before
        A file of benchmark/results.
    tolerance
        A share: 0.1 lets a ratio of 2.0 fall to 1.8.

    Raises
    ------
    ValueError
        The file holds no ratio, so that nothing could fail.
    """
    committed = json.loads(before.read_text(encoding="utf-8"))["results"]
    ratios = {name: value for name, value in committed.items() if " / " in name}
    if not ratios:
        raise ValueError(f"{before} holds no ratio. Give the results of a run of peers.")
    found = []
    for name, value in ratios.items():
        if name not in now:
            found.append(f"{name}: {value:.2f} before, not measured now")
        elif not now[name] >= value * (1 - tolerance):  # written so that NaN fails, too
            found.append(f"{name}: {value:.2f} before, {now[name]:.2f} now")
    return found
