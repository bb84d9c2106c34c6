"""Results as files: results.json for programs, results.md for people, results.png for the eye.

Knows what `finetune.evaluate` puts together; computes nothing.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune.scores import METRICS

CELL_METRIC = "ndcg@10"  # of matrices and pictures; the JSON has the others
NONE = "–"
MAX_ANNOTATED = 400  # cells of a heat map whose numbers can still be read
PANEL_IN = 5.0


def write_report(results: Mapping[str, Any], folder: Path) -> str:
    """Write the files into `folder`, each at once or not at all, and return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(results)
    _write(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    _write(folder / "results.md", markdown.encode())
    picture = folder / "results.png"
    if figure := draw(results):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        _write(picture, buffer.getvalue())
    else:
        picture.unlink(missing_ok=True)  # of an earlier run: it would not belong to these numbers
    return markdown


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return tables: what was evaluated, then a section for each kind of task that there is."""
    of_kind = {
        kind: [task for task in results["tasks"] if task["task"] == kind]
        for kind in ("similarity", "pairs", "retrieval")
    }
    about = {**results["model"], **results["settings"]}
    about |= {key: results[key] for key in ("date", "commit", "items_embedded")}
    lines = ["# Evaluation", "", *_table(["", ""], [[key.replace("_", " "), _cell(about[key])] for key in about])]
    if tasks := of_kind["similarity"]:
        lines += ["", "## Similarity", "", *_tasks_table(tasks, ["pairs", "spearman", "pearson"])]
    if tasks := of_kind["pairs"]:
        columns = ["pairs", "positives", "ap", "accuracy", "accuracy_threshold", "f1", "f1_threshold"]
        lines += ["", "## Pairs", "", *_tasks_table(tasks, columns)]
    if tasks := of_kind["retrieval"]:
        lines += ["", "## Retrieval", "", *_tasks_table(tasks, ["queries", "gallery", *METRICS])]
        lines += [line for task in tasks for line in _cells_section(task)]
        lines += [line for task in tasks if "compression" in task for line in _compression_section(task)]
    return "\n".join(lines) + "\n"


def draw(results: Mapping[str, Any]) -> Figure | None:
    """Draw a heat map for each task of several cells, and curves for each with compression; None if there is none."""
    maps = [task for task in results["tasks"] if len(task.get("cells", [])) > 1]
    curves = [task for task in results["tasks"] if "compression" in task]
    if not maps and not curves:
        return None
    num_panels = len(maps) + len(curves)
    num_columns = math.ceil(math.sqrt(num_panels))
    num_rows = math.ceil(num_panels / num_columns)
    figure = Figure(figsize=(PANEL_IN * 1.2 * num_columns, PANEL_IN * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(num_rows, num_columns, index + 1) for index in range(num_panels)]
    for task, axes in zip(maps, panels, strict=False):
        _draw_cells(task, axes)
    for task, axes in zip(curves, panels[len(maps) :], strict=True):
        _draw_compression(task, axes)
    return figure


def _draw_cells(task: Mapping[str, Any], axes: Any) -> None:
    rows, columns, cells = _matrix(task)
    values = [[cells[row, column].get(CELL_METRIC, math.nan) for column in columns] for row in rows]
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=f"{task['name']}: {CELL_METRIC}", xlabel="gallery", ylabel="queries")
    if len(rows) * len(columns) <= MAX_ANNOTATED:
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    colour = "black" if value > 0.6 else "white"  # viridis is light above
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axes.figure.colorbar(image, ax=axes)


def _draw_compression(task: Mapping[str, Any], axes: Any) -> None:
    rows = task["compression"]
    for precision in dict.fromkeys(row["precision"] for row in rows):
        points = [(row["dimensions"], row[CELL_METRIC]) for row in rows if row["precision"] == precision]
        axes.plot(*zip(*points, strict=True), marker="o", label=precision)
    sizes = sorted({row["dimensions"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, sizes)
    axes.set(title=f"{task['name']}: {CELL_METRIC}", xlabel="dimensions")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _cells_section(task: Mapping[str, Any]) -> list[str]:
    if len(task["cells"]) < 2:
        return []
    rows, columns, cells = _matrix(task)
    lines = ["", f"### {task['name']}, queries by gallery", ""]
    if len(rows) == 1 or len(columns) == 1:
        header = ["queries", "gallery", "number of queries", *METRICS]
        body = [
            [row, column, cells[row, column]["queries"], *(cells[row, column].get(metric) for metric in METRICS)]
            for row, column in cells
        ]
        lines += _table(header, body)
    else:
        body = [[row, *(cells[row, column].get(CELL_METRIC) for column in columns)] for row in rows]
        lines += [f"{CELL_METRIC}:", "", *_table(["queries", *columns], body)]
    left_out = [" in ".join(languages) for languages, cell in cells.items() if not cell["in_mean"]]
    if left_out:
        lines += ["", f"Not in the mean, for one language on both sides or nothing relevant: {', '.join(left_out)}."]
    if without := sum(cell["without_relevant"] for cell in task["cells"]):
        lines += ["", f"Queries with nothing relevant in the language of a cell, left out of that cell: {without}."]
    return lines


def _compression_section(task: Mapping[str, Any]) -> list[str]:
    keys = list(task["compression"][0])
    body = [[row[key] for key in keys] for row in task["compression"]]
    lines = ["", f"### {task['name']}, smaller vectors", ""]
    return lines + _table([key.replace("_", " ") for key in keys], body)


def _matrix(task: Mapping[str, Any]) -> tuple[list[str], list[str], dict[tuple[str, str], Mapping[str, Any]]]:
    cells = {(cell["query_language"], cell["gallery_language"]): cell for cell in task["cells"]}
    return list(dict.fromkeys(row for row, _ in cells)), list(dict.fromkeys(column for _, column in cells)), cells


def _tasks_table(tasks: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    header = ["task", *(column.replace("_", " ") for column in columns)]
    return _table(header, [[task["name"], *(task[column] for column in columns)] for task in tasks])


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, header)) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
