"""Search image files by names in many languages, with the client, and print what comes first.

Run it as `python demo/quickstart.py grpc://127.0.0.1:8001`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vlembed import EmbeddingClient

FOLDER = Path(__file__).parent
PICTURES = sorted((FOLDER / "images").glob("*.png"))
# Of the names that the demonstration's checkpoint never saw with their picture, one of each of its languages.
QUERIES = [json.loads(line) for line in (FOLDER / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()]
DEMONSTRATION = "vlembed-emoji"


def main(url: str) -> None:
    """Embed, compare, print."""
    with EmbeddingClient(url) as client:
        info = client.info()
        print(f"\nserved: {info.checkpoint} (fingerprint {info.fingerprint}), {info.dimensions} dimensions\n")
        similarity = client.similarity([query["text"] for query in QUERIES], PICTURES)  # (texts, pictures)

    num_right = 0
    for query, row in zip(QUERIES, similarity, strict=True):
        first, second = row.argsort()[::-1][:2]
        is_right = PICTURES[first].stem == query["image"]
        num_right += is_right
        found = f"{PICTURES[first].stem} {row[first]:.2f}, then {PICTURES[second].stem} {row[second]:.2f}"
        print(f"{'✓' if is_right else '✗'} {query['language']}  {found:48} {query['text']}")
    print(f"\n{num_right} of {len(QUERIES)} find their picture first, among {len(PICTURES)}.")
    if info.checkpoint == DEMONSTRATION:
        print(
            "This small checkpoint knows emoji by their names, and nothing else. It never saw these names with their\n"
            "pictures; they were picked from those that it gets right, and its model card says how often it does.\n"
            "Photographs need the real one, about 4 GB to download:\n"
            "./scripts/quickstart --checkpoint Qwen/Qwen3-VL-Embedding-2B"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: the server's URL is needed: python demo/quickstart.py grpc://127.0.0.1:8001")
    main(sys.argv[1])
