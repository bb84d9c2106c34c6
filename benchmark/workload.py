"""What is embedded in the benchmarks: sentences in several languages, and pictures with the statistics of photographs.

python -m benchmark.workload > benchmark/embed_text.json  # the input file of perf_analyzer
"""

from __future__ import annotations

import io
import json

import numpy as np
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
