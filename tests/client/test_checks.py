"""Arguments that are whole numbers, seconds, numbers, flags or mappings, wherever the client takes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.client.indexes import FINGERPRINT, vectors
from vlembed import EmbeddingClient, Index, InvalidInputError, Retry, top_k
from vlembed._checks import MAX_SECONDS, flag, mapping, number, seconds, whole_number

URL = "http://127.0.0.1:1"
NO_NUMBERS = [True, False, np.True_, "5", b"5", None, [5], math.nan, math.inf, -math.inf, 5j, Decimal(5), Fraction(5)]


def whole_numbers(client: EmbeddingClient) -> dict[str, Callable[[Any], object]]:
    """Return what takes a whole number, 1 or more."""
    index = Index.create("hnsw", dimensions=16, fingerprint=FINGERPRINT)
    return {
        "concurrency": lambda value: EmbeddingClient(URL, concurrency=value).close(),
        "Retry.max_attempts": lambda value: Retry(max_attempts=value),
        "k": lambda value: top_k(np.eye(3), np.eye(3), value),
        "k ": lambda value: index.search(vectors(1)[0], value),
        "k  ": lambda value: index.search_batch(vectors(2), value),
        "dimensions": lambda value: Index.create(dimensions=value, fingerprint=FINGERPRINT),
        "dimensions ": lambda value: client.embed("a", dimensions=value),
        "dimensions  ": lambda value: client.embed_many(["a"], dimensions=value),
        "dimensions   ": lambda value: Index.create(client=client, dimensions=value),
        "max_pixels": lambda value: client.embed("a", max_pixels=value),
        "m": lambda value: Index.create("hnsw", dimensions=16, fingerprint=FINGERPRINT, m=value),
        "ef_search": lambda value: Index.create("hnsw", dimensions=16, fingerprint=FINGERPRINT, ef_search=value),
        "oversampling": lambda value: Index.create("int8", dimensions=16, fingerprint=FINGERPRINT, oversampling=value),
    }


OPTIONAL = ("dimensions", "max_pixels")  # may be None
SECONDS = {
    "timeout_s": lambda value: EmbeddingClient(URL, timeout_s=value).close(),
    "timeout_s ": lambda value: EmbeddingClient(URL).wait_until_ready(value),
    "timeout_s  ": lambda value: Index.connect(URL, "name", dimensions=4, fingerprint=FINGERPRINT, timeout_s=value),
    "total_timeout_s": lambda value: EmbeddingClient(URL, total_timeout_s=value).close(),
    "Retry.initial_backoff_s": lambda value: Retry(initial_backoff_s=value),
    "Retry.max_backoff_s": lambda value: Retry(max_backoff_s=value),
}


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, np.float64(4), -1, 10**30, np.int64(-4)], ids=repr)
def test_what_is_no_whole_number(value: Any, client: EmbeddingClient) -> None:
    for name, call in whole_numbers(client).items():
        is_taken = value == 10**30 and name.strip() in ("concurrency", "Retry.max_attempts", "k", "dimensions")
        if is_taken or (value is None and name.strip() in OPTIONAL):
            continue
        with pytest.raises(InvalidInputError, match=rf"^{name.strip()} is "):
            call(value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, -0.5, MAX_SECONDS + 1, 10**30, np.float32("nan")], ids=repr)
@pytest.mark.parametrize("name", SECONDS)
def test_what_are_no_seconds(name: str, value: Any) -> None:
    if value is None and name == "total_timeout_s":
        return
    with pytest.raises(InvalidInputError, match=rf"^{name.strip()} is .* Pass seconds "):
        SECONDS[name](value)


@pytest.mark.parametrize("name", [name for name in SECONDS if not name.startswith("Retry")])
def test_no_time_at_all(name: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{name.strip()} is 0. Pass seconds above 0"):
        SECONDS[name](0)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, 1.5], ids=repr)
def test_what_is_no_share(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^Retry\.budget is .* Pass a number, 0 to 1\."):
        Retry(budget=value)


@pytest.mark.parametrize("value", [0, 1, "yes", None, [], math.nan], ids=repr)
def test_what_is_no_flag(value: Any, client: EmbeddingClient) -> None:
    for name, call in {
        "truncate": lambda: client.embed("a", truncate=value),
        "allow_reference_text": lambda: client.embed("a", allow_reference_text=value),
        "allow_reference_text ": lambda: client.embed_many("a", allow_reference_text=value),
        "progress": lambda: client.embed_many("a", progress=value),
        "pairwise": lambda: client.similarity("a", "b", pairwise=value),
    }.items():
        with pytest.raises(InvalidInputError, match=rf"^{name.strip()} is .* Pass True or False\."):
            call()


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"a": 3}, "header 'a' or its value cannot be sent. Pass str"),
        ({"a": None}, "header 'a' or its value cannot be sent. Pass str"),
        ({"a": b"x"}, "header 'a' or its value cannot be sent. Pass str"),
        ({3: "a"}, "headers has the key 3. Pass keys of type str."),
        ({b"a": "a"}, "headers has the key b'a'. Pass keys of type str."),
        ("authorization: secret", "headers is of type str. Pass a mapping"),
        ([("authorization", "secret")], "headers is of type list. Pass a mapping"),
        (0, "headers is of type int. Pass a mapping"),
    ],
)
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_wrong_headers(scheme: str, headers: Any, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        EmbeddingClient(f"{scheme}://127.0.0.1:1", headers=headers)
    assert says in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("argument", ["retry", "tls"])
def test_what_is_no_retry_and_no_tls(argument: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{argument} is 5\. Pass a (Retry|TLS)\.$"):
        EmbeddingClient(URL, **{argument: 5})


def test_numbers_that_python_does_not_print(client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match=r"^dimensions is of type int; this server takes 4 to 8\."):
        client.embed("a", dimensions=10**9999)


def test_numbers_of_numpy_are_taken(client: EmbeddingClient) -> None:
    assert client.embed("a", dimensions=np.int32(4), truncate=np.True_).array.shape == (1, 4)
    assert top_k(np.eye(3), np.eye(3), np.uint8(2)).scores.shape == (3, 2)
    Retry(max_attempts=np.int64(3), max_backoff_s=np.float32(0.5), budget=np.float64(0.5), reserve=np.uint8(0))
    EmbeddingClient(URL, timeout_s=np.float32(3), total_timeout_s=np.int16(9), concurrency=np.int64(2)).close()


def test_what_the_checks_return() -> None:
    for value, kind in (
        (whole_number("a", np.int8(3), 1), int),
        (number("a", np.float32(0.5), 0, 1), float),
        (seconds("a", 1), float),
        (seconds("a", 0, may_be_zero=True), float),
        (flag("a", np.False_), bool),
        (mapping("a", {"b": 1}), dict),
    ):
        assert type(value) is kind
