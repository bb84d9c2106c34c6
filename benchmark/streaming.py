"""Items per second of `embed_many` on texts and images of many sizes: packs of even cost against packs in order.

Everything else is the same: the same stream, window, bounds and server; only which items share a pack differs.

    ./scripts/benchmark streaming --url grpc://127.0.0.1:8001
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from unittest.mock import patch

import numpy as np

from vlembed import EmbeddingClient, _stream
from vlembed._packing import Cost, CostedItem

from .report import rates, report
from .workload import SENTENCES, picture

SHARES = {"short text": 0.6, "long text": 0.2, "small image": 0.15, "large image": 0.05}
NUM_PICTURES = 8  # of each size, used again and again: encoding them is not what is measured


def workload(num_items: int, seed: int = 0) -> list[str | bytes]:
    """Return items in random order: texts of 1 to 2 or 20 to 40 sentences, photographs of 256 or 1024 px."""
    generator = np.random.default_rng(seed)
    small = [picture(256, 192, "JPEG", seed) for seed in range(NUM_PICTURES)]
    large = [picture(1024, 768, "JPEG", seed) for seed in range(NUM_PICTURES)]
    make: dict[str, Callable[[], str | bytes]] = {
        "short text": lambda: " ".join(generator.choice(SENTENCES, generator.integers(1, 3))),
        "long text": lambda: " ".join(generator.choice(SENTENCES, generator.integers(20, 41))),
        "small image": lambda: small[generator.integers(NUM_PICTURES)],
        "large image": lambda: large[generator.integers(NUM_PICTURES)],
    }
    kinds = generator.choice(list(SHARES), num_items, p=list(SHARES.values()))
    return [make[kind]() for kind in kinds]


def in_order(waiting: dict[int, CostedItem], bounds: Mapping[str, int], num_packs: int) -> list[dict[int, CostedItem]]:
    """Fill packs in the order of the items: what `deal` is compared with."""
    packs: list[dict[int, CostedItem]] = []
    while waiting and len(packs) < num_packs:
        pack: dict[int, CostedItem] = {}
        cost = Cost()
        for index, costed in waiting.items():
            cost += costed.cost
            if pack and not cost.fits(bounds):
                break
            pack[index] = costed
        for index in pack:
            del waiting[index]
        packs.append(pack)
    return packs


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server, for example grpc://127.0.0.1:8001")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=1000, help="items of a round")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    arguments = parser.parse_args()
    items = workload(arguments.items)

    with EmbeddingClient(arguments.url, concurrency=arguments.concurrency) as client:
        client.wait_until_ready()

        def grouped() -> int:
            return sum(1 for _ in client.embed_many(items))

        def ungrouped() -> int:
            with patch.object(_stream, "deal", in_order):
                return grouped()

        measured = rates({"grouped": grouped, "in order": ungrouped}, arguments.rounds)
        checkpoint = client.info().checkpoint
    report(
        "streaming",
        {
            "packs of even cost, items/s": measured["grouped"],
            "packs in order, items/s": measured["in order"],
            "even / in order": measured["grouped"] / measured["in order"],
        },
        checkpoint=checkpoint,
        rounds=arguments.rounds,
        items=arguments.items,
        concurrency=arguments.concurrency,
    )


if __name__ == "__main__":
    main()
