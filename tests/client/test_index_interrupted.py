"""Ctrl-C at any moment of a change: every id keeps its own vector, and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.client.indexes import FAISS
from vlembed._locks import ReadWriteLock

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import os, signal, sys, threading, time
import numpy as np
from vlembed import Index

kind, change, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = {"ivfpq": {"train_size": 500, "nprobe": 12}}.get(kind, {})
array = np.random.default_rng(seed).standard_normal((3000, 64)).astype(np.float32)
ids = [str(number) for number in range(3000)]
index = Index.create(kind, dimensions=64, fingerprint="f", **options)
index.add(array[:1000], ids=ids[:1000], fingerprint="f")
changes = {
    "add": lambda: index.add(array[1000:], ids=ids[1000:], fingerprint="f"),
    "upsert": lambda: index.upsert(array[-600:], ids=ids[400:1000], fingerprint="f"),
    "delete": lambda: index.delete(ids[:500]),
}
started = time.perf_counter()
if seed == 0:
    changes[change]()
    print(time.perf_counter() - started)
    sys.exit()
timer = threading.Timer(float(sys.argv[4]), lambda: os.kill(os.getpid(), signal.SIGINT))
interrupted = False
try:
    timer.start()
    changes[change]()
    timer.join()
    time.sleep(0.1)
except KeyboardInterrupt:
    interrupted = True
print(interrupted)
old = {own: row for own, row in zip(ids, array[:1000])}
new = {
    "add": dict(zip(ids, array)),
    "upsert": {**old, **dict(zip(ids[400:1000], array[-600:]))},
    "delete": dict(zip(ids[500:], array[500:1000])),
}[change]
kept = new if len(index) == len(new) and len(new) != len(old) else old
assert len(index) == len(kept), (len(index), len(old), len(new))
held = new if change == "upsert" and index.search(new["999"], 1)[0].id == "999" else kept
found = index.search_batch(np.array(list(held.values())), 1)
wrong = [own for own, matches in zip(held, found) if matches[0].id != own]
assert len(wrong) <= (0.1 * len(held) if kind == "ivfpq" else 0), wrong[:10]  # its scores are estimates
index.add(-array[:5], ids=list("abcde"), fingerprint="f")
assert [matches[0].id for matches in index.search_batch(-array[:5], 1)] == list("abcde")
"""


def run(*arguments: object) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.mark.parametrize("kind", FAISS)
@pytest.mark.parametrize("change", ["add", "upsert", "delete"])
def test_interrupted(kind: str, change: str) -> None:
    takes_s = float(run(kind, change, 0))
    interrupted = [run(kind, change, seed, seed / 5 * takes_s) for seed in range(1, 5)]
    assert "True" in interrupted


def test_a_writer_that_gives_up_lets_readers_in() -> None:
    lock, reads, may_end = ReadWriteLock(), threading.Event(), threading.Event()

    def read() -> None:
        with lock.reading():
            reads.set()
            may_end.wait()

    reader = threading.Thread(target=read)
    reader.start()
    reads.wait()
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), lock.writing():
        pass
    other = threading.Thread(target=read, daemon=True)
    may_end.set()
    other.start()
    other.join(10)
    assert not other.is_alive()
    reader.join()
