"""What is embedded in the benchmarks: sentences in several languages, and pictures with the statistics of photographs.

python -m benchmark.workload > benchmark/embed_text.json  # the input file of perf_analyzer
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

SENTENCES = [
    "A photograph of a golden retriever puppy running through tall grass.",
    "The quarterly report shows that revenue grew by twelve percent, driven by new customers in Asia.",
    "Eine Katze schläft auf dem Sofa, während draußen der Regen fällt.",
    "Un vélo rouge est appuyé contre un mur de briques.",
    "Dos niños juegan al fútbol en la playa al atardecer.",
    "一只猫在沙发上睡觉，窗外下着雨。",
    "夕暮れの海辺でサッカーをする二人の子供。",
    "قطة تنام على الأريكة بينما يهطل المطر في الخارج.",
    "बिल्ली सोफे पर सो रही है और बाहर बारिश हो रही है।",
    "How do I reset my password?",
    "Красный велосипед прислонён к кирпичной стене.",
    "Error 503: the service is overloaded. Retry after a moment, with a longer pause each time.",
]
PACK_SIZES = [1, 2, 4, 8]  # items of a request

Item = tuple[str, bytes]  # text and encoded image; empty: none
NUM_ITEMS = {  # of a round
    "queries": 48,
    "documents": 12,
    "images of 224 px": 16,
    "images of 512 px": 6,
    "images of 1024 px": 2,
    "text with image": 6,
    "mix": 40,
}
MIX = {  # what a search service embeds in a day: mostly queries, some new documents and pictures
    "queries": 0.65,
    "documents": 0.15,
    "images of 224 px": 0.08,
    "images of 512 px": 0.07,
    "images of 1024 px": 0.01,
    "text with image": 0.04,
}
NUM_PICTURES = 8  # of each size, used again and again: encoding them is not what is measured


def packs(num_packs: int, pack_size: int, seed: int = 0) -> list[list[str]]:
    """Return packs of texts of one or two sentences."""
    generator = np.random.default_rng(seed)
    return [
        [" ".join(generator.choice(SENTENCES, generator.integers(1, 3))) for _ in range(pack_size)]
        for _ in range(num_packs)
    ]


def picture(width: int, height: int, image_format: str, seed: int = 0) -> bytes:
    """Return an encoded picture: smooth colours with some noise, so that it compresses as a photograph does."""
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8))
    pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = (pixels + generator.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, image_format, quality=90)
    return buffer.getvalue()


def make_items(workload: str, num_items: int, seed: int = 0) -> list[Item]:
    """Return items of a workload: queries of 1 or 2 sentences, documents of 8 to 30, square JPEGs."""
    generator = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " ".join(generator.choice(SENTENCES, generator.integers(low, high + 1)))

    def image(side_px: int) -> bytes:
        return picture(side_px, side_px, "JPEG", int(generator.integers(NUM_PICTURES)))

    make: dict[str, Callable[[], Item]] = {
        "queries": lambda: (text(1, 2), b""),
        "documents": lambda: (text(8, 30), b""),
        "images of 224 px": lambda: ("", image(224)),
        "images of 512 px": lambda: ("", image(512)),
        "images of 1024 px": lambda: ("", image(1024)),
        "text with image": lambda: (text(1, 2), image(512)),
    }
    kinds = (
        generator.choice(list(MIX), num_items, p=list(MIX.values())) if workload == "mix" else [workload] * num_items
    )
    return [make[kind]() for kind in kinds]


def is_text(items: list[Item]) -> bool:
    """Tell whether no item has an image."""
    return not any(image for _, image in items)


def poisson_arrivals(rate: float, seconds: float, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return the times, in s, at which requests of a Poisson process arrive within `seconds`, at least one."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, max(1, int(2 * rate * seconds + 50)))
    times = np.cumsum(gaps)
    return np.asarray(times[: max(1, int(np.searchsorted(times, seconds)))])


def main() -> None:
    """Print perf_analyzer's input: 32 requests of `embed_text`."""
    requests = [
        {"text": {"content": pack, "shape": [size]}}
        for seed, size in enumerate(PACK_SIZES * 8)
        for pack in packs(1, size, seed)
    ]
    print(json.dumps({"data": requests}, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
