"""Programs that fork: python -m tests.client.forks NAME [URL or folder]. They fail by an exception, or hang."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal  # a lazy import must not be under way in a thread at a fork

from tests.client.conftest import vector
from tests.client.indexes import FINGERPRINT
from vlembed import ConnectError, EmbeddingClient, Index, InvalidInputError

NUM_CHILDREN = 3
NUM_TEXTS = 8
DIMENSIONS = 64
FORK = multiprocessing.get_context("fork")
OPTIONS = {"flat": {}, "hnsw": {}, "int8": {"train_size": 1000}, "binary": {}, "ivfpq": {"train_size": 1000}}


def fork(work: Callable[[], object]) -> int:
    """Do some work in a child, and return its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def join(*pids: int) -> None:
    """Wait for children, which must have done their work."""
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    assert not any(statuses), statuses


# --- clients ---

client: EmbeddingClient  # of the parent, inherited by its children


def embed(tag: str) -> None:
    """Embed texts that nobody else has, one by one and all at once."""
    texts = [f"{number:03d}{tag}" for number in range(NUM_TEXTS)]
    expected = np.array([vector(text.encode()) for text in texts])
    assert_array_equal([client.embed(text).array[0] for text in texts], expected)
    assert_array_equal(client.embed(texts).array, expected)
    assert_array_equal([row.embedding for row in client.embed_many(texts)], expected)


def children_and_parent() -> None:
    pids = [fork(lambda number=number: embed(f"child{number}")) for number in range(NUM_CHILDREN)]
    embed("parent")
    join(*pids)


def used() -> None:
    embed("parent")
    children_and_parent()


def unused() -> None:
    children_and_parent()


def nested() -> None:
    embed("parent")
    pid = fork(children_and_parent)
    embed("parent")
    join(pid)


def ends_as_usual() -> None:
    """Let the child end by itself, so that everything it has inherited is collected."""
    embed("parent")
    if pid := os.fork():
        embed("parent")
        join(pid)
    else:
        embed("child")


def processes() -> None:
    embed("parent")
    children = [FORK.Process(target=embed, args=(f"child{number}",)) for number in range(NUM_CHILDREN)]
    for child in children:
        child.start()
    embed("parent")
    for child in children:
        child.join()
    assert not any(child.exitcode for child in children)


def process_pool() -> None:
    embed("parent")
    with ProcessPoolExecutor(NUM_CHILDREN, mp_context=FORK) as pool:
        results = [pool.submit(embed, f"child{number}") for number in range(NUM_CHILDREN * 2)]
        embed("parent")
        for result in results:
            result.result()


def data_loader() -> None:
    from torch.utils.data import DataLoader

    embed("parent")
    loader = DataLoader([f"{number:03d}item" for number in range(40)], batch_size=4, num_workers=2, collate_fn=collate)
    for texts, rows in loader:
        assert_array_equal(rows, [vector(text.encode()) for text in texts])
        embed("parent")


def collate(texts: list[str]) -> tuple[list[str], np.ndarray]:
    return texts, client.embed(texts).array


def in_the_middle_of_calls() -> None:
    """Fork while other threads hold every lock, and wait for answers."""
    with busy(lambda: embed("thread")):
        for number in range(4):
            join(fork(lambda number=number: embed(f"child{number}")))


@contextmanager
def busy(work: Callable[[], object], num_threads: int = 4) -> Iterator[None]:
    """Do some work in threads over and over meanwhile."""
    stopped = threading.Event()
    errors: list[BaseException] = []

    def loop() -> None:
        try:
            while not stopped.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def stream() -> None:
    """Refuse a stream of the parent, begun or not, in a child; the parent goes on with it."""
    texts = [f"{number:03d}stream" for number in range(100)]
    begun, not_begun = client.embed_many(texts), client.embed_many(texts)
    rows = [next(begun)]

    def go_on() -> None:
        for inherited in (begun, not_begun):
            with pytest.raises(InvalidInputError, match="embed_many in the child"):
                next(inherited)
        embed("child")

    join(fork(go_on))
    rows += begun
    assert_array_equal([row.embedding for row in rows], [vector(text.encode()) for text in texts])
    assert len(list(not_begun)) == len(texts)


def source_that_forks() -> None:
    """Refuse to go on with a stream in a child that its source has forked."""
    pids = []

    def texts() -> Iterator[str]:
        for number in range(50):
            if number == 10:
                pids.append(os.fork())
            yield f"{number:03d}stream"

    rows = []
    try:
        rows += client.embed_many(texts())
    finally:
        if pids == [0]:
            os._exit(1 if rows else 0)
    assert len(rows) == 50
    join(*pids)


def real_server() -> None:
    """Embed other texts in every process, and compare them with what the parent got before."""
    texts = [[f"text {number} of {process}" for number in range(NUM_TEXTS)] for process in range(NUM_CHILDREN + 1)]
    before = [client.embed(own).array for own in texts]

    def work(process: int) -> None:
        rows = [client.embed(text).array[0] for text in texts[process]]
        assert (np.einsum("nd,nd->n", rows, before[process]) > 0.9999).all()

    pids = [fork(lambda process=process: work(process)) for process in range(NUM_CHILDREN)]
    work(NUM_CHILDREN)
    join(*pids)


def closed() -> None:
    """Leave a client closed that the parent had closed."""
    embed("parent")
    client.close()

    def work() -> None:
        with pytest.raises(ConnectError, match="this client is closed"):
            client.embed("a")

    work()
    join(fork(work))


def closed_in_the_child() -> None:
    """Close a client in a child, used or not; the parent's stays open."""
    embed("parent")
    join(fork(client.close), fork(lambda: (embed("child"), client.close())))
    embed("parent")


def model_is_asked_again() -> None:
    info = client.info()
    join(fork(lambda: client.info() is info and sys.exit("the child has the parent's info")))


def pauses() -> None:
    """Draw other pauses in every child."""
    reader, writer = os.pipe()
    random.seed(1)
    join(*[fork(lambda: os.write(writer, f"{client._retry.backoff_s(1)}\n".encode())) for _ in range(3)])
    os.close(writer)
    assert len({*os.fdopen(reader).read().split()}) == 3


# --- indexes ---


def vectors(num_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_rows, DIMENSIONS), dtype=np.float32)


def add(index: Index, name: str, num_rows: int, seed: int = 0) -> None:
    ids = [f"{name}{number}" for number in range(num_rows)]
    metadata = [{"even": number % 2 == 0} for number in range(num_rows)]
    index.add(vectors(num_rows, seed), ids=ids, metadata=metadata, fingerprint=FINGERPRINT)


def new_index(kind: str) -> Index:
    index = Index.create(kind, dimensions=DIMENSIONS, fingerprint=FINGERPRINT, **OPTIONS[kind])
    add(index, "row", 2000)
    return index


def found(index: Index) -> list[str]:
    """Return what searches of one and of many find, with and without a filter."""
    queries = vectors(300, seed=1)
    batches = [*index.search_batch(queries, 5), *index.search_batch(queries, 5, where={"even": True})]
    return [match.id for matches in [index.search(queries[0]), *batches] for match in matches]


def index(kind: str) -> None:
    """Search, add, delete, save, load and train in a child, in its first and in another thread."""
    old = new_index(kind)
    theirs = found(old)

    def work() -> None:
        assert found(old) == theirs
        thread = threading.Thread(target=found, args=(old,))
        thread.start()
        thread.join()
        add(old, "new", 2000, seed=2)
        assert old.delete([f"row{number}" for number in range(1000)]) == 1000
        assert len(found(old)) == len(theirs)
        made = new_index(kind)
        assert found(made) == theirs
        made.save("forked.index")
        assert found(Index.load("forked.index")) == theirs

    pid = fork(work)
    assert found(old) == theirs
    join(pid)


def index_that_is_searched(kind: str) -> None:
    """Fork while other threads search."""
    old = new_index(kind)
    theirs = found(old)
    with busy(lambda: found(old), num_threads=2):
        for _ in range(5):
            join(fork(lambda: found(old) == theirs or sys.exit("others were found")))


def index_that_is_changed(kind: str) -> None:
    """Refuse in a child what another thread was changing; the parent's is whole."""
    old = Index.create(kind, dimensions=DIMENSIONS, fingerprint=FINGERPRINT)
    at_work, may_go_on = threading.Event(), threading.Event()
    write = old._store.add

    def write_slowly(*arguments: object) -> None:
        at_work.set()
        may_go_on.wait()
        write(*arguments)  # type: ignore[arg-type]

    old._store.add = write_slowly  # type: ignore[method-assign]
    thread = threading.Thread(target=add, args=(old, "row", 100))
    thread.start()
    at_work.wait()

    def work() -> None:
        for use in (len, found, lambda torn: torn.delete("row1"), lambda torn: torn.info):
            with pytest.raises(InvalidInputError, match="Load it again in the child"):
                use(old)
        old.close()

    pid = fork(work)
    may_go_on.set()
    thread.join()
    join(pid)
    assert len(old) == 100


def index_in_a_file(kind: str) -> None:
    """Read a mapped index into memory in parent and children at once, who share the position of its file."""
    made = Index.create(kind, dimensions=DIMENSIONS, fingerprint=FINGERPRINT)
    add(made, "row", 60_000)
    made.save("mapped.index")
    made.delete("row1")
    theirs = found(made)
    for _ in range(3):
        mapped = Index.load("mapped.index")
        started = FORK.Barrier(3)

        def work(mapped: Index = mapped, started: Barrier = started) -> None:
            started.wait()
            mapped.delete("row1")
            assert found(mapped) == theirs

        pids = [fork(work) for _ in range(2)]
        work()
        join(*pids)


def collection(folder: str) -> None:
    """Search and change a collection in Milvus in parent and child."""
    path = Path(folder) / "forked.db"
    ids = [f"row{number}" for number in range(40)]
    known = {"dimensions": DIMENSIONS, "fingerprint": FINGERPRINT}
    with Index.connect(path, "forked", **known) as parents:
        parents.upsert(vectors(40), ids=ids, fingerprint=FINGERPRINT)

        def search() -> None:
            assert [matches[0].id for matches in parents.search_batch(vectors(40), 1)] == ids

        def work() -> None:
            search()
            parents.upsert(-vectors(3), ids=["a", "b", "c"], fingerprint=FINGERPRINT)
            with Index.connect(path, "forked") as childs:
                assert len(childs) == len(parents) == 43
            parents.close()

        search()
        pid = fork(work)
        search()
        join(pid)
        search()
        assert len(parents) == 43
    os._exit(0)  # milvus-lite waits seconds for its threads


def main(name: str, argument: str) -> None:
    global client
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # of Python 3.12: a process with threads
    program = globals()[name]
    if argument.startswith(("http", "grpc")):
        with EmbeddingClient(argument) as client:
            program()
    else:
        program(argument)


if __name__ == "__main__":
    main(*sys.argv[1:3])
