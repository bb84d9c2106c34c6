"""`embed_many`: every row in order, little held, errors where they belong, and nothing left behind."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import INFO, MemoryTransport
from tests.client.faults import SERVE, Proxy, client_threads, eventually, num_sockets
from tests.client.test_client import TEXTS, expected
from tests.samples import encode, image
from vlembed import (
    ConnectError,
    EmbeddedItem,
    EmbeddingClient,
    InvalidInputError,
    Item,
    ItemError,
    MissingExtraError,
    OverloadedError,
    RequestTimeoutError,
    Retry,
    ServerError,
    VlembedError,
    _stream,
)

PNG = encode(image(32, 32))
MANY = [f"text {number} {'x' * (number % 50)}" for number in range(500)]
MODES = ["raise", "skip", "return"]
MAX_HELD = _stream.HELD_PACKS * 4 * INFO["bounds"]["max_items"]  # items, at the default concurrency of 4


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), f"threads are left: {client_threads()}")


def array(rows: Any) -> np.ndarray:
    return np.array([row.embedding for row in rows])


def collect(stream: Any, rows: list[Any]) -> None:
    """Keep what comes before an error."""
    for row in stream:
        rows.append(row)


# --- rows ---


def test_rows_are_those_of_embed_in_order(client: EmbeddingClient, memory: MemoryTransport) -> None:
    items = [*MANY, *[PNG] * 9, "", Item("both", PNG), Item("own", instruction="Own"), "", *MANY[:50]]
    options: dict[str, Any] = {"instruction": "Find", "dimensions": 6, "max_pixels": 4096, "truncate": True}
    rows = list(client.embed_many(iter(items), **options))
    ours, theirs = array(rows), client.embed(items, **options)
    np.testing.assert_array_equal(ours, theirs.array)
    assert [row.index for row in rows] == list(range(len(items)))
    assert [row.text_tokens for row in rows] == theirs.text_tokens.tolist()
    assert [row.image_tokens for row in rows] == theirs.image_tokens.tolist()
    assert {row.fingerprint for row in rows} == {theirs.fingerprint}
    assert ours.dtype == np.float32 and rows[0].embedding.flags.writeable
    assert all(len(inputs["text"]) <= 4 for _, inputs in memory.requests)


def test_rows_come_in_order_whatever_comes_first(memory: MemoryTransport) -> None:
    pauses = itertools.cycle([0.02, 0, 0.005])
    memory.before_answer = lambda: time.sleep(next(pauses))
    with EmbeddingClient("memory", transport=memory, concurrency=8) as client:
        np.testing.assert_array_equal(array(client.embed_many(MANY)), expected(MANY))


@pytest.mark.parametrize("items", [[], iter([]), "text", PNG], ids=["none", "none, lazily", "a text", "an image"])
def test_few_items(client: EmbeddingClient, items: Any) -> None:
    assert len(list(client.embed_many(items))) == (1 if isinstance(items, str | bytes) else 0)


def test_threads_share_a_client(client: EmbeddingClient) -> None:
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = array(client.embed_many(MANY[number:]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_array_equal(results[number], expected(MANY[number:]))


# --- bounds ---


class Counting:
    """An endless source that counts what is read of it."""

    def __init__(self) -> None:
        self.num_read = 0

    def __iter__(self) -> Iterator[str]:
        for number in itertools.count():
            self.num_read += 1
            yield f"text {number}"


def test_an_endless_source_is_read_no_further_than_needed(client: EmbeddingClient) -> None:
    source = Counting()
    stream = client.embed_many(source)
    assert source.num_read == 0
    for num_yielded, row in enumerate(itertools.islice(stream, 1000)):
        assert row.index == num_yielded
        assert source.num_read - num_yielded <= MAX_HELD
    stream.close()
    assert 1000 <= source.num_read <= 1000 + MAX_HELD


@pytest.mark.parametrize("pause_s", [0, 0.001], ids=["a fast reader", "a slow reader"])
def test_packs_are_as_good_as_full(client: EmbeddingClient, memory: MemoryTransport, pause_s: float) -> None:
    for _ in client.embed_many(iter(MANY)):
        time.sleep(pause_s)
    assert len(memory.requests) < 1.1 * 500 / 4


def test_a_row_that_is_late_holds_up_the_reading(client: EmbeddingClient, memory: MemoryTransport) -> None:
    """The first pack is late; meanwhile the others are answered, but only so many."""
    is_first, released = itertools.chain([True], itertools.repeat(False)), threading.Event()
    memory.before_answer = lambda: released.wait() if next(is_first) else None
    source = Counting()
    stream = client.embed_many(source)
    threading.Timer(0.3, released.set).start()
    assert next(stream).index == 0
    assert source.num_read <= MAX_HELD
    stream.close()


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch, client: EmbeddingClient, memory: MemoryTransport) -> None:
    monkeypatch.setattr(_stream, "MAX_HELD_BYTES", 10 * len(PNG))
    num_unsent = []

    def source() -> Iterator[bytes]:
        for number in range(100):
            num_unsent.append(number - sum(len(inputs["image"]) for _, inputs in memory.requests))
            yield PNG

    assert len(list(client.embed_many(source()))) == 100
    assert max(num_unsent) < 10


def test_requests_in_flight_are_as_many_as_asked_for(memory: MemoryTransport) -> None:
    together, lock, in_flight, most = threading.Barrier(3), threading.Lock(), 0, 0

    def count() -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        together.wait(20)  # three at a time, or it breaks
        with lock:
            in_flight -= 1

    memory.before_answer = count
    with EmbeddingClient("memory", transport=memory, concurrency=3) as client:
        rows = list(client.embed_many(TEXTS[:24]))  # 6 packs
    assert len(rows) == 24
    assert most == 3


# --- bad items ---

BAD = {3: 7, 10: "bad", 11: "bad", 50: Path("nowhere.png"), 51: b"", 77: "a" * 5001, 120: "https://example.com/a.png"}
MIXED = [BAD.get(number, text) for number, text in enumerate(MANY[:200])]
CODES = ["WRONG_TYPE", "BAD", "BAD", "FILE_UNREADABLE", "IMAGE_EMPTY", "TEXT_TOO_LARGE", "TEXT_IS_REFERENCE"]


def test_bad_items_are_skipped(client: EmbeddingClient) -> None:
    rows = list(client.embed_many(MIXED, on_error="skip"))
    good = [number for number in range(200) if number not in BAD]
    assert [row.index for row in rows] == good
    np.testing.assert_array_equal(array(rows), expected([MANY[number] for number in good]))


def test_bad_items_are_returned(client: EmbeddingClient) -> None:
    outcomes = list(client.embed_many(MIXED, on_error="return"))
    assert [outcome.index for outcome in outcomes] == list(range(200))
    errors = {outcome.index: outcome.code for outcome in outcomes if isinstance(outcome, ItemError)}
    assert errors == dict(zip(BAD, CODES, strict=True))


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_item_is_raised_after_what_is_before_it(client: EmbeddingClient, bad: int) -> None:
    items = [MIXED[number] if number == bad else text for number, text in enumerate(MANY)]
    with pytest.raises(InvalidInputError, match=rf"^item {bad}: ") as caught:
        collect(client.embed_many(items), rows := [])
    np.testing.assert_array_equal(array(rows), expected(MANY[:bad]))
    assert [(item.index, item.code) for item in caught.value.items] == [(bad, dict(zip(BAD, CODES, strict=True))[bad])]


def test_what_follows_a_bad_item_is_not_read(client: EmbeddingClient) -> None:
    source = itertools.chain(["a", 7], Counting())
    stream = client.embed_many(source)  # type: ignore[arg-type]
    assert next(stream).index == 0
    with pytest.raises(InvalidInputError):
        next(stream)
    assert next(source) == "text 0"


# --- sources and servers that fail ---


@pytest.mark.parametrize("on_error", MODES)
@pytest.mark.parametrize("num_before", [0, 1, 5, 300])
def test_a_source_that_raises(client: EmbeddingClient, on_error: Any, num_before: int) -> None:
    def source() -> Iterator[str]:
        yield from MANY[:num_before]
        raise KeyError("of the source")

    with pytest.raises(KeyError, match="of the source"):
        collect(client.embed_many(source(), on_error=on_error), rows := [])
    assert [row.index for row in rows] == list(range(num_before))


def fail_after(num_answers: int, memory: MemoryTransport, error: VlembedError) -> Iterator[int]:
    """Have every later request fail, and return what counts the requests."""
    answers = itertools.count()

    def fail() -> None:
        if next(answers) >= num_answers:
            raise error

    memory.before_answer = fail
    return answers


@pytest.mark.parametrize("on_error", MODES)
@pytest.mark.parametrize("error", [ConnectError("gone"), ServerError("failed"), RequestTimeoutError("slow")], ids=repr)
def test_a_server_that_fails_raises_whatever_on_error_is(
    memory: MemoryTransport, on_error: Any, error: VlembedError
) -> None:
    fail_after(30, memory, error)
    with (
        EmbeddingClient("memory", transport=memory, retry=Retry(initial_backoff_s=0)) as client,
        pytest.raises(type(error), match=str(error)),
    ):
        collect(client.embed_many(MANY, on_error=on_error), rows := [])
    assert 4 * (30 - 16) <= len(rows) <= 4 * 30  # all but those that wait for a pack that failed
    np.testing.assert_array_equal(array(rows), expected(MANY[: len(rows)]))


def test_after_a_failure_nothing_more_is_tried(memory: MemoryTransport) -> None:
    """The packs that were in flight or ready do not use up retries of their own, one after the other."""
    answers = fail_after(20, memory, ConnectError("gone"))
    retry = Retry(max_attempts=10, initial_backoff_s=0.01, max_backoff_s=0.01, reserve=1000)
    with EmbeddingClient("memory", transport=memory, retry=retry) as client, pytest.raises(ConnectError, match="gone"):
        list(client.embed_many(Counting()))
    assert next(answers) - 20 <= 4 * 10  # of the four in flight, and none of those that were ready


def test_nobody_is_there() -> None:
    with (
        EmbeddingClient("http://127.0.0.1:9", retry=Retry(max_attempts=2, initial_backoff_s=0)) as client,
        pytest.raises(ConnectError),
    ):
        client.embed_many(["a"])


def test_the_total_time_is_for_each_pack(memory: MemoryTransport) -> None:
    memory.before_answer = lambda: time.sleep(0.02)
    with EmbeddingClient("memory", transport=memory, total_timeout_s=1.5, concurrency=1) as client:
        rows = list(client.embed_many(MANY[:400]))  # 100 packs, 2 s
    assert len(rows) == 400


# --- the end ---


def test_a_stream_that_is_never_started_costs_nothing(client: EmbeddingClient, memory: MemoryTransport) -> None:
    client.embed_many(Counting()).close()
    client.embed_many(Counting())
    assert not memory.requests
    assert not client_threads()


@pytest.mark.parametrize("end", [lambda stream: stream.close(), lambda stream: None], ids=["close", "forget"])
def test_an_abandoned_stream_sends_nothing_more(
    client: EmbeddingClient, memory: MemoryTransport, end: Callable[[Any], None]
) -> None:
    stream = client.embed_many(Counting(), progress=False)
    next(stream)
    end(stream)
    del stream
    gc.collect()
    eventually(lambda: not client_threads(), "threads are left")
    num_requests = len(memory.requests)
    time.sleep(0.05)
    assert len(memory.requests) == num_requests
    assert not client._streams


def test_abandoning_ends_a_pause(memory: MemoryTransport) -> None:
    fails = itertools.chain([False] * 5, itertools.repeat(True))

    def fail() -> None:
        if next(fails):
            raise ConnectError("gone")

    memory.before_answer = fail
    retry = Retry(initial_backoff_s=3600, max_backoff_s=3600)
    with EmbeddingClient("memory", transport=memory, retry=retry) as client:
        stream = client.embed_many(Counting())
        next(stream)
        stream.close()  # else it would last an hour


def test_closing_the_client_ends_its_streams(memory: MemoryTransport) -> None:
    fails = itertools.chain([False] * 5, itertools.repeat(True))
    failed = threading.Event()

    def fail() -> None:
        if next(fails):
            failed.set()
            raise OverloadedError("full")

    memory.before_answer = fail
    client = EmbeddingClient("memory", transport=memory, retry=Retry(initial_backoff_s=3600, max_backoff_s=3600))

    def close() -> None:
        failed.wait()
        client.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises((ConnectError, OverloadedError)):
        list(client.embed_many(Counting()))
    closing.join()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_closing_the_client_ends_requests_in_flight(scheme: str) -> None:
    memory, arrived, released = MemoryTransport(), threading.Event(), threading.Event()
    memory.before_answer = lambda: (arrived.set(), released.wait())
    with SERVE[scheme](memory) as url:
        client = EmbeddingClient(url, timeout_s=3600)

        def close() -> None:
            arrived.wait()
            client.close()

        closing = threading.Thread(target=close)
        closing.start()
        try:
            with pytest.raises(ConnectError, match="closed"):
                list(client.embed_many(MANY))
        finally:
            released.set()
        closing.join()


# --- overload ---


class Crowded:
    """Refuses more requests at a time than it has room for."""

    def __init__(self, room: int) -> None:
        self.room, self.lock = room, threading.Lock()
        self.in_flight = self.num_refused = 0

    def __call__(self) -> None:
        with self.lock:
            if self.in_flight >= self.room:
                self.num_refused += 1
                raise OverloadedError("Exceeds maximum queue size")
            self.in_flight += 1
        time.sleep(0.002)
        with self.lock:
            self.in_flight -= 1


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_overload_makes_it_slower_and_loses_nothing(scheme: str) -> None:
    """Without any retry: an overload is the stream's own to handle."""
    memory, crowded = MemoryTransport(), Crowded(2)
    memory.before_answer = crowded
    retry = Retry(max_attempts=1, initial_backoff_s=0.001, max_backoff_s=0.01, budget=0, reserve=0)
    with SERVE[scheme](memory) as url, EmbeddingClient(url, concurrency=8, retry=retry) as client:
        np.testing.assert_array_equal(array(client.embed_many(MANY)), expected(MANY))
    assert crowded.num_refused
    assert crowded.num_refused < len(memory.requests)  # without backing off it would be 3 of 4


def test_an_overload_without_end_is_raised(memory: MemoryTransport) -> None:
    fail_after(20, memory, OverloadedError("full"))
    retry = Retry(initial_backoff_s=0.001, max_backoff_s=0.01)
    with (
        EmbeddingClient("memory", transport=memory, retry=retry, total_timeout_s=0.3) as client,
        pytest.raises((OverloadedError, RequestTimeoutError)),
    ):
        collect(client.embed_many(MANY), rows := [])
    np.testing.assert_array_equal(array(rows), expected(MANY[: len(rows)]))


# --- arguments and progress ---


def test_wrong_arguments_are_refused_at_once(client: EmbeddingClient) -> None:
    for arguments in ({"on_error": "ignore"}, {"dimensions": 3}, {"max_pixels": 1}, {"truncate": 1}):
        with pytest.raises(InvalidInputError, match=next(iter(arguments))):
            client.embed_many(["a"], **arguments)  # type: ignore[call-overload]
    for items in (7, {"a": 1}, {"a"}):
        with pytest.raises(InvalidInputError, match=r"^items is (7|of type)"):
            client.embed_many(items)  # type: ignore[call-overload]


def test_progress(client: EmbeddingClient, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    for items in (MIXED, (item for item in MIXED)):
        assert len(list(client.embed_many(items, on_error="skip", progress=True))) == 193
        shown = capsys.readouterr().err
        assert "tokens/s, 7 errors" in shown
        assert ("/200 [" in shown) == (items is MIXED)  # what is left is known of what has a length


def test_progress_without_tqdm(client: EmbeddingClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(MissingExtraError, match=r"vlembed\[bulk\]"):
        client.embed_many(["a"], progress=True)


# --- broken connections ---


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_broken_connections_cost_nothing(scheme: str) -> None:
    """Connections are reset and answers cut all along; every row comes in order, and nothing stays open."""
    num_before = num_sockets()
    with SERVE[scheme](MemoryTransport()) as url, Proxy(url) as proxy:
        retry = Retry(max_attempts=20, initial_backoff_s=0.01, max_backoff_s=0.1, budget=1)
        with EmbeddingClient(proxy.url, retry=retry) as client:
            rows: list[EmbeddedItem] = []
            for row in client.embed_many(MANY):
                rows.append(row)
                if len(rows) % 100 == 0:
                    proxy.reset()
                elif len(rows) % 50 == 0:
                    proxy.num_answers_to_cut = 1
            np.testing.assert_array_equal(array(rows), expected(MANY))
    eventually(lambda: num_sockets() <= num_before, "sockets are left open")
