"""Texts per second through the whole server, against the language tower run in process on the same packed batches.

In process nothing is preprocessed, queued, copied or normalised: the ratio is what serving costs. The same texts one by
one, in process and through a server without dynamic batching, show what batching gains.

    ./scripts/benchmark serving --repository DIR
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from images import PATCH_SIZE
from preprocessing import Bounds, Preprocessor
from server.launch import TritonServer
from server.paths import local_path
from vlembed import EmbeddingClient

from .report import rates, report
from .workload import Item, packs

Array = npt.NDArray[Any]


class Batch(NamedTuple):
    """What the towers take of several packs, laid end to end as the server does with a dynamic batch."""

    vision: dict[str, Array]  # empty if no pack has an image
    language: dict[str, Array]  # image_embeds of packs without images only; those of the others come in between
    has_images: list[bool]  # of each pack
    rows: Array  # of `pooled` that are items, not sentinels


class InProcess:
    """Both towers alone, on packs that were preprocessed beforehand."""

    def __init__(self, repository: Path) -> None:
        self.preprocessor = Preprocessor(repository / "preprocess/1", Bounds())
        self.vision, self.language = (
            onnxruntime.InferenceSession(repository / tower / "1/model.onnx", providers=["CPUExecutionProvider"])
            for tower in ("vision_encoder", "language_model")
        )

    def batch(self, packs: list[list[Item]]) -> Batch:
        """Preprocess packs and lay them end to end."""
        prepared = [
            self.preprocessor(text=[text.encode() for text, _ in pack], image=[image for _, image in pack])
            for pack in packs
        ]
        has_images = [any(image for _, image in pack) for pack in packs]
        with_images = [pack for pack, has in zip(prepared, has_images, strict=True) if has]
        vision = lay_out([{name: getattr(pack, name) for name in ("patches", "grid_thw")} for pack in with_images])
        names = ("input_ids", "position_ids", "lengths")
        language = lay_out([{name: getattr(pack, name) for name in names} for pack in prepared])
        is_item = [np.arange(pack.lengths.size) < pack.num_text_tokens.size for pack in prepared]
        return Batch(vision, language, has_images, np.concatenate(is_item))

    def pooled(self, batch: Batch) -> Array:
        """Return the hidden state (n, D) of each item."""
        sentinel = np.zeros(self.preprocessor.image_embeds_size, np.float32)
        parts = [sentinel] * len(batch.has_images)
        if batch.vision:
            embeds = self.vision.run(["image_embeds"], batch.vision)[0]  # (V, 4D)
            ends = batch.vision["patches_offsets"][1:-1] // PATCH_SIZE
            found = iter(np.split(embeds.reshape(-1, sentinel.size), ends))
            parts = [next(found) if has else sentinel for has in batch.has_images]
        images = lay_out([{"image_embeds": part} for part in parts])
        return np.asarray(self.language.run(["pooled"], batch.language | images)[0])[batch.rows]

    def run(self, batches: list[Batch], num_texts: int) -> Callable[[], int]:
        """Return work that runs every batch."""

        def work() -> int:
            for batch in batches:
                self.pooled(batch)
            return num_texts

        return work


def lay_out(packs: list[dict[str, Array]]) -> dict[str, Array]:
    """Lay the tensors of packs end to end, with the offsets that the server adds."""
    feed: dict[str, Array] = {}
    for name in packs[0] if packs else ():
        parts = [np.asarray(pack[name]).reshape(-1) for pack in packs]
        feed[name] = np.concatenate(parts)
        feed[f"{name}_offsets"] = np.cumsum([0, *(part.size for part in parts)], dtype=np.int32)
    return feed


def served(client: EmbeddingClient, requests: list[list[str]], concurrency: int) -> Callable[[], int]:
    """Return work that sends every request, `concurrency` at a time."""

    def work() -> int:
        with ThreadPoolExecutor(concurrency) as pool:
            return sum(len(embeddings) for embeddings in pool.map(client.embed, requests))

    return work


def with_configs(repository: Path, folder: Path, configs: dict[str, str]) -> Path:
    """Return a copy of a repository with other configs of some models; the weights are linked."""
    copy = Path(shutil.copytree(repository, folder / "repository", copy_function=lambda a, b: Path(b).symlink_to(a)))
    for model, text in configs.items():
        path = copy / model / "config.pbtxt"
        path.unlink()
        path.write_text(text, encoding="utf-8")
    return copy


def without_batching(repository: Path) -> dict[str, str]:
    """Return the configs of a repository without dynamic batching."""
    texts = {path.parent.name: path.read_text(encoding="utf-8") for path in repository.glob("*/config.pbtxt")}
    return {model: re.sub(r"^dynamic_batching.*\n", "", text, flags=re.MULTILINE) for model, text in texts.items()}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=local_path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packs", type=int, default=16, help="requests of a round")
    parser.add_argument("--pack-size", type=int, default=8, help="texts of a request")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight")
    arguments = parser.parse_args()
    repository, concurrency = arguments.repository.resolve(), arguments.concurrency
    texts = packs(arguments.packs, arguments.pack_size)
    singles = [[text] for pack in texts for text in pack][: 2 * concurrency]
    num_texts = arguments.packs * arguments.pack_size
    in_process = InProcess(repository)
    items: list[list[Item]] = [[(text, b"") for text in pack] for pack in texts]
    batches = [in_process.batch(items[i : i + concurrency]) for i in range(0, len(items), concurrency)]
    packed = in_process.run(batches, num_texts)
    one_by_one = in_process.run([in_process.batch([[(text, b"")]]) for (text,) in singles], len(singles))

    with TritonServer(repository) as server, EmbeddingClient(server.grpc_url) as client:
        batching = rates(
            {
                "in process": packed,
                "served": served(client, texts, concurrency),
                "in process, one by one": one_by_one,
                "served, one by one": served(client, singles, concurrency),
            },
            arguments.rounds,
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        TritonServer(with_configs(repository, Path(folder), without_batching(repository))) as server,
        EmbeddingClient(server.grpc_url) as client,
    ):
        plain = rates(
            {"in process, one by one": one_by_one, "served, one by one": served(client, singles, concurrency)},
            arguments.rounds,
        )
    alone = batching["in process, one by one"]
    gain_on = batching["served, one by one"] / alone
    gain_off = plain["served, one by one"] / plain["in process, one by one"]
    report(
        "serving",
        {
            "packs of texts, in process, texts/s": batching["in process"],
            "packs of texts, served, texts/s": batching["served"],
            "served / in process (goal 0.85)": batching["served"] / batching["in process"],
            "one text a request, in process, texts/s": alone,
            "one text a request, served, batching on, texts/s": batching["served, one by one"],
            "one text a request, served, batching off, texts/s": plain["served, one by one"],
            "batching on / in process one by one": gain_on,
            "batching off / in process one by one": gain_off,
            "batching on / off": gain_on / gain_off,
            "packs / in process one by one": batching["in process"] / alone,
        },
        repository=repository.name,
        rounds=arguments.rounds,
        packs=arguments.packs,
        pack_size=arguments.pack_size,
        concurrency=concurrency,
    )


if __name__ == "__main__":
    main()
