"""Embed real image files and real text in several languages with the client, and print how similar they are.

Run it as `python demo/quickstart.py grpc://127.0.0.1:8001`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vlembed import EmbeddingClient

IMAGES = Path(__file__).with_name("images")
PICTURES = [IMAGES / f"{name}.png" for name in ("red_apple", "cat_face", "bicycle", "rocket")]
TEXTS = ["a red apple", "ein roter Apfel", "一只猫", "دراجة هوائية", "ракета"]


def main(url: str) -> None:
    """Embed, compare, print."""
    with EmbeddingClient(url) as client:
        info = client.info()
        print(f"\nserved: {info.checkpoint} (fingerprint {info.fingerprint}), {info.dimensions} dimensions")
        if "random" in info.checkpoint:
            print("Its weights are random: it shows how everything works, and its similarities mean nothing.")
        images = client.embed(PICTURES)
        texts = client.embed(TEXTS)
        similarity = client.similarity(texts, images)

    print("\ncosine similarity, tokens of the text")
    print("".join(f"{path.stem:>12}" for path in PICTURES))
    for text, row, tokens in zip(TEXTS, similarity, texts.text_tokens, strict=True):
        print("".join(f"{value:12.2f}" for value in row) + f"{tokens:6}  {text}")
    print(
        "".join(f"{tokens:12}" for tokens in images.text_tokens + images.image_tokens) + "        tokens of the image"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: the server's URL is needed: python demo/quickstart.py grpc://127.0.0.1:8001")
    main(sys.argv[1])
