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

kind, change = sys.argv[1:]
options = {"ivfpq": {"train_size": 500, "nprobe": 12}}.get(kind, {})
array = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
ids = [str(number) for number in range(3000)]
old = dict(zip(ids[:1000], array))
new = {
    "add": dict(zip(ids, array)),
    "upsert": {**old, **dict(zip(ids[400:1000], array[-600:]))},
    "delete": dict(zip(ids[500:1000], array[500:])),
}[change]
changes = {
    "add": lambda index: index.add(array[1000:], ids=ids[1000:], fingerprint="f"),
    "upsert": lambda index: index.upsert(array[-600:], ids=ids[400:1000], fingerprint="f"),
    "delete": lambda index: index.delete(ids[:500]),
}


def interrupt(after_s):
    index = Index.create(kind, dimensions=64, fingerprint="f", **options)
    index.add(array[:1000], ids=ids[:1000], fingerprint="f")
    timer = threading.Timer(after_s, lambda: os.kill(os.getpid(), signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background ignores
    started = time.perf_counter()
    try:
        if after_s:
            timer.start()
        changes[change](index)
        takes_s, is_interrupted = time.perf_counter() - started, False
        if after_s:
            timer.join()
            time.sleep(0.1)
    except KeyboardInterrupt:
        takes_s, is_interrupted = 0, True
    is_new = index.search(list(new.values())[-1], 1)[0].id == list(new)[-1] and len(index) == len(new)
    held = new if is_new else old
    assert len(index) == len(held), (len(index), len(old), len(new))
    found = index.search_batch(np.array(list(held.values())), 1)
    wrong = [own for own, matches in zip(held, found) if matches[0].id != own]
    assert len(wrong) <= (0.1 * len(held) if kind == "ivfpq" else 0), wrong[:10]  # its scores are estimates
    index.add(-array[:5], ids=list("abcde"), fingerprint="f")
    assert [matches[0].id for matches in index.search_batch(-array[:5], 1)] == list("abcde")
    return takes_s, is_interrupted


takes_s, _ = interrupt(0)
print(sum(interrupt(share * takes_s)[1] for share in (0.1, 0.3, 0.5, 0.7, 0.9)))
"""


@pytest.mark.parametrize("kind", FAISS)
@pytest.mark.parametrize("change", ["add", "upsert", "delete"])
def test_interrupted(kind: str, change: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client")}
    process = subprocess.run(
        [sys.executable, "-c", CODE, kind, change], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 0  # or it was never interrupted


def test_a_writer_that_gives_up_lets_readers_in() -> None:
    lock, reads, may_end = ReadWriteLock(), threading.Event(), threading.Event()

    def read() -> None:
        with lock.reading():
            reads.set()
            may_end.wait()

    reader = threading.Thread(target=read)
    reader.start()
    reads.wait()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), lock.writing():
        pass
    signal.signal(signal.SIGINT, handler)
    other = threading.Thread(target=read, daemon=True)
    may_end.set()
    other.start()
    other.join(10)
    assert not other.is_alive()
    reader.join()
