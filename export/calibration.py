"""What integers are measured on: everyday texts and pictures, or the user's own.

Knows what an item looks like; knows nothing of towers and precisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, UnidentifiedImageError

from settings import DEFAULT_INSTRUCTION

from .checkpoint import ExportError

QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."  # the client's own
KEYS = {"text", "image", "instruction"}
TEXTS = [
    "The train to the coast leaves at seven and stops at every village on the way.",
    "How do I change the battery of a smoke detector?",
    "Revenue rose by 4.2 percent to 318 million euros in the third quarter of 2025, mostly because of new customers.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)",
    "Eine junge Frau repariert ihr Fahrrad vor einem alten Bahnhof.",
    "Le musée est fermé le lundi, sauf pendant les vacances d'été.",
    "La receta lleva dos tazas de harina, una pizca de sal y el zumo de un limón.",
    "Дети играют во дворе, а их собака спит в тени дерева.",
    "昨天晚上的足球比赛以二比一结束，主队在最后五分钟进了球。",
    "駅前の小さな喫茶店では、朝七時から焼きたてのパンが食べられます。",
    "يقع السوق القديم بجانب الميناء ويفتح أبوابه كل صباح.",
    "बारिश के बाद सड़क पर पानी भर गया और बसें देर से चलीं।",
    "오늘 회의는 오후 세 시로 미뤄졌고, 장소는 그대로입니다.",
    "error: connection to 10.0.4.17:5432 refused (is the server running?)",
    "ok",
    "A recipe, a map and two photographs lay on the kitchen table; nobody knew who had left them there, or why the map "
    "showed a country that was gone. The photographs were of the same house, taken a generation apart.",
]  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One item, as a user would embed it."""

    text: str = ""
    image: Image.Image | None = None
    instruction: str = DEFAULT_INSTRUCTION


def samples() -> Iterator[Sample]:
    """Return texts under two instructions, pictures, and one of both."""
    for index, text in enumerate(TEXTS):
        yield Sample(text, instruction=QUERY_INSTRUCTION if index % 2 else DEFAULT_INSTRUCTION)
    for index, picture in enumerate(pictures()):
        yield Sample("What is this?" if index == 0 else "", picture)


def pictures() -> Iterator[Image.Image]:
    """Draw a landscape, a page of print, a diagram and a texture."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 192)[:, None]
    sky = np.stack([90 + 120 * ramp, 140 + 70 * ramp, 230 - 40 * ramp], axis=2).repeat(256, axis=1)
    landscape = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(landscape)
    draw.ellipse((180, 20, 220, 60), fill=(250, 220, 90))
    draw.polygon([(0, 192), (70, 90), (130, 150), (190, 70), (256, 192)], fill=(60, 90, 60))
    yield landscape.filter(ImageFilter.GaussianBlur(1))

    page = Image.new("RGB", (192, 256), (252, 250, 245))
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(" ".join(TEXTS[:5]).split(".")):
        draw.text((12, 12 + 16 * row), line.encode("ascii", "replace").decode()[:28], fill=(20, 20, 20))
    yield page

    diagram = Image.new("RGB", (256, 160), (255, 255, 255))
    draw = ImageDraw.Draw(diagram)
    for column, height in enumerate((40, 95, 60, 120, 80)):
        draw.rectangle(
            (20 + 45 * column, 140 - height, 50 + 45 * column, 140), fill=(200 - 35 * column, 60, 40 * column)
        )
    draw.line([(10, 140), (246, 140)], fill=(0, 0, 0), width=2)
    yield diagram

    noise = Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8))
    yield noise.resize((160, 160), Image.Resampling.BICUBIC)


def read_samples(path: Path) -> list[Sample]:
    """Read JSON Lines of `text`, `image` (a path, relative to the file) and `instruction`.

    Raises
    ------
    ExportError
        There is no such file, or a line is no item.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: {error}. Pass a file of JSON Lines.") from error
    read = [
        _sample(f"{path}, line {number}", line, path.parent) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not read:
        raise ExportError(f"{path} holds no item. Write one JSON object a line, with `text` or `image`.")
    return read


def _sample(where: str, line: str, folder: Path) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ExportError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict) or not row.keys() <= KEYS or not all(isinstance(value, str) for value in row.values()):
        raise ExportError(f"{where}: {line[:80]!r} is no object of strings with the keys {', '.join(sorted(KEYS))}.")
    image = None
    if row.get("image"):
        try:
            with Image.open(folder / row["image"]) as opened:
                image = opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ExportError(f"{where}: {row['image']!r} is no image that can be read ({error}).") from error
    if image is None and "text" not in row:
        raise ExportError(f"{where} has neither `text` nor `image`.")
    return Sample(row.get("text", ""), image, row.get("instruction") or DEFAULT_INSTRUCTION)
