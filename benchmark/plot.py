"""Draw lines into a PNG, in the environment of peers/plot.txt: `python plot.py OUT.png < FIGURE.json`.

The figure is {"title", "x", "y", "lines": {name: [[x, y], ...]}}; both axes are logarithmic.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Lines = dict[str, list[tuple[float, float]]]


def plot(python: Path, output: Path, lines: Lines, **labels: str) -> None:
    """Draw with another environment's interpreter: this project needs no matplotlib."""
    figure = json.dumps({"lines": lines, **labels})
    subprocess.run([python, __file__, output], input=figure, text=True, check=True)


def main() -> None:
    """Read the figure, write the file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure: dict[str, Any] = json.load(sys.stdin)
    _, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, points in figure["lines"].items():
        ours = name.startswith("vlembed")
        axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=3 if ours else 1.2)
    axes.set(title=figure["title"], xlabel=figure["x"], ylabel=figure["y"], xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    pyplot.savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
