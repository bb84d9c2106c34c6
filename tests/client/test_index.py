"""The index against exhaustive search: one suite for every store and kind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import MemoryTransport, vector
from tests.client.indexes import (
    DIMENSIONS,
    FAISS,
    FINGERPRINT,
    MILVUS,
    SCORE,
    Exhaustive,
    MakeIndex,
    assert_congruent,
    ids_of,
    vectors,
)
from tests.client.test_similarity import embeddings
from vlembed import EmbeddingClient, Index, InvalidInputError, Item, MissingExtraError, _index, similarity
from vlembed._filters import OPERATORS

ALL = (*FAISS, *MILVUS)
every_kind = pytest.mark.parametrize("kind", ALL)
in_both_stores = pytest.mark.parametrize("kind", ["flat", "milvus flat"])

HARD = [
    'a"b',
    "a'b",
    "a\\b",
    "日本",
    "😀",
    "a]b",
    "{x}",
    "a%b",
    '"',
    "\\",
    "'",
    '\\"',
    "a/b~c",
    "a.b",
    "a:b",
    " ",
    "$x",
]
VALUES = [*HARD[:5], "", "a", "b", 0, 1, 2, -1, 1.0, 1.5, -0.25, 2**53 + 1, True, False, None, [1], {"a": 1}]
FIELDS = ["a", "year", "language", *HARD[:9], ""]


def numbered(num_rows: int, start: int = 0) -> list[str]:
    return [f"row {number}" for number in range(start, start + num_rows)]


def filled(make_index: MakeIndex, kind: str, num_rows: int = 300) -> tuple[Index, Exhaustive]:
    """Return an index whose rows tell their number, and the same rows."""
    index, exhaustive = make_index(kind), Exhaustive()
    ids, array = numbered(num_rows), vectors(num_rows)
    metadata = [{"number": number, "third": str(number % 3)} for number in range(num_rows)]
    index.add(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
    exhaustive.upsert(ids, array, metadata)
    return index, exhaustive


@every_kind
def test_search(kind: str, make_index: MakeIndex) -> None:
    index, exhaustive = filled(make_index, kind)
    queries = vectors(20, seed=2)
    for k in (1, 10, 299, 1000):
        assert_congruent(kind, index, exhaustive, queries, k)
        assert_congruent(kind, index, exhaustive, queries, k, {"third": "1"}, lambda own: own["third"] == "1")
        assert_congruent(kind, index, exhaustive, queries, k, {"number": {"<": 7}}, lambda own: own["number"] < 7)
        assert_congruent(kind, index, exhaustive, queries, k, {"number": {">": 300}}, lambda own: False)


@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_changes(kind: str, seed: int, make_index: MakeIndex) -> None:
    generator = np.random.default_rng(seed)
    index, exhaustive = make_index(kind), Exhaustive()
    for step in range(12):
        num_rows = int(generator.integers(1, 80))
        array = vectors(num_rows, seed=100 * seed + step)
        ids = numbered(400)
        generator.shuffle(ids)
        ids = ids[:num_rows]
        metadata = [{"step": step, "even": bool(number % 2 == 0)} for number in range(num_rows)]
        action = generator.choice(["add", "upsert", "delete"])
        if action == "add":
            new = [number for number, own in enumerate(ids) if own not in exhaustive.rows]
            ids, array, metadata = [ids[i] for i in new], array[new], [metadata[i] for i in new]
            index.add(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
            exhaustive.upsert(ids, array, metadata)
        elif action == "upsert":
            index.upsert(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
            exhaustive.upsert(ids, array, metadata)
        else:
            there = [own for own in ids if own in exhaustive.rows]
            assert index.delete(ids) == len(there)
            for own in there:
                del exhaustive.rows[own]
        assert len(index) == len(exhaustive.rows)
    queries = vectors(10, seed=3)
    assert_congruent(kind, index, exhaustive, queries, 5)
    assert_congruent(kind, index, exhaustive, queries, 5, {"even": True}, lambda own: own["even"])
    assert index.delete(list(exhaustive.rows)) == len(exhaustive.rows)
    assert len(index) == 0 and index.search(queries[0]) == []


@every_kind
def test_matches_are_those_of_the_time_of_the_search(kind: str, make_index: MakeIndex) -> None:
    index, _ = filled(make_index, kind)
    queries = vectors(20, seed=2)
    theirs = list(index.search_batch(queries, 5))
    early = index.search_batch(queries, 5)
    index.upsert(vectors(100, seed=4), ids=numbered(100), metadata=[{"new": 1}] * 100, fingerprint=FINGERPRINT)
    between = index.search_batch(queries, 5)
    theirs_between = list(between)
    index.delete(numbered(250, start=50))
    index.add(vectors(300, seed=5), ids=numbered(300, start=1000), fingerprint=FINGERPRINT)
    assert list(early) == theirs != theirs_between
    assert list(between) == theirs_between
    assert early[-2:][0] == theirs[-2]


def is_met(value: Any, relation: str, asked: Any) -> bool:
    """Say what a filter means, in other words than `_filters` does."""
    if relation == "in":
        return any(is_met(value, "==", own) for own in asked)
    is_number = [isinstance(own, int | float) and not isinstance(own, bool) for own in (value, asked)]
    if not (all(is_number) or (type(value) is type(asked) and isinstance(value, str | bool))):
        return False
    return OPERATORS[relation](value, asked)


@in_both_stores
def test_filters_of_random_metadata(kind: str, make_index: MakeIndex) -> None:
    generator = np.random.default_rng(0)

    def pick(values: list[Any]) -> Any:
        return values[generator.integers(len(values))]

    metadata = [{pick(FIELDS): pick(VALUES) for _ in range(generator.integers(4))} for _ in range(400)]
    index = make_index(kind)
    index.add(vectors(400), ids=numbered(400), metadata=metadata, fingerprint=FINGERPRINT)
    num_found = 0
    for _ in range(300):
        where: dict[str, Any] = {}
        for _ in range(generator.integers(1, 3)):
            asked = pick([own for own in VALUES if isinstance(own, str | int | float)])
            relation = pick(["==", "!=", "in"] if isinstance(asked, bool) else [*OPERATORS, "in"])
            several = [asked, *(own for own in (pick(VALUES), pick(VALUES)) if isinstance(own, str | int | float))]
            where[pick(FIELDS)] = {relation: several if relation == "in" else asked}
        theirs = {
            own
            for own, about in zip(numbered(400), metadata, strict=True)
            if all(is_met(about.get(name), *ask) for name, asks in where.items() for ask in asks.items())
        }
        ours = index.search(vectors(1)[0], 400, where=where)
        assert set(ids_of(ours)) == theirs, where
        num_found += len(theirs)
    assert num_found > 1000  # or the test asks for nothing


@in_both_stores
def test_filters_in_short(kind: str, make_index: MakeIndex) -> None:
    index, _ = filled(make_index, kind)
    query = vectors(1)[0]

    def numbers(where: Any) -> set[int]:
        return {match.metadata["number"] for match in index.search(query, 300, where=where)}

    assert numbers({"number": 7}) == numbers({"number": np.int64(7)}) == numbers({"number": 7.0}) == {7}
    assert numbers({"number": {">=": 290, "<": 293}, "third": {"in": ["0", "1"]}}) == {291, 292, 290} - {290}
    assert numbers({}) == numbers(None) == set(range(300))
    assert numbers({"number": {}}) == set(range(300))  # no operator, no condition
    assert numbers({"third": {"in": []}}) == numbers({"nothing": {"!=": 1}}) == numbers({"number": "7"}) == set()
    index.upsert(vectors(1), ids=["row 7"], metadata=[{"number": -7}], fingerprint=FINGERPRINT)
    assert numbers({"number": {"<": 0}}) == {-7}


@every_kind
def test_an_empty_index(kind: str, make_index: MakeIndex) -> None:
    index = make_index(kind)
    assert len(index) == 0 and index.delete(["a"]) == 0
    assert index.search(vectors(1)[0]) == []
    assert [list(matches) for matches in index.search_batch(vectors(2), where={"a": 1})] == [[], []]
    assert len(index.search_batch(vectors(0))) == 0
    index.add(vectors(0), ids=[], fingerprint=FINGERPRINT)
    index.upsert(vectors(0), ids=[], metadata=[], fingerprint=FINGERPRINT)
    assert len(index) == 0


@every_kind
def test_equal_rows(kind: str, make_index: MakeIndex) -> None:
    """A graph of equal rows falls apart; all of them are found all the same."""
    index = make_index(kind)
    index.add(np.ones((200, DIMENSIONS), np.float32), ids=numbered(200), fingerprint=FINGERPRINT)
    matches = index.search(np.ones(DIMENSIONS, np.float32), 200)
    assert sorted(ids_of(matches)) == sorted(numbered(200))
    assert all(match.score == pytest.approx(1, abs=1e-5) for match in matches)


@every_kind
def test_what_comes_back_is_what_went_in(kind: str, make_index: MakeIndex) -> None:
    index = make_index(kind)
    metadata = {
        "text": "Ünïcödé 日本 😀\n\t\"'\\",
        "": [1, None, {"a:b": True}],
        "none": None,
        "float": 0.1,
        "big": 2**62,
    }
    ids = [*HARD, "日本" * 100]
    index.add(vectors(len(ids)), ids=ids, metadata=[metadata, *[None] * (len(ids) - 1)], fingerprint=FINGERPRINT)
    assert set(ids_of(index.search(vectors(1)[0], 100))) == set(ids)
    first = index.search(vectors(1)[0], 1)[0]
    assert first.id == ids[0] and first.metadata == metadata
    first.metadata["text"] = metadata["none"] = "changed"
    assert index.search(vectors(1)[0], 1)[0].metadata == {**metadata, "none": None}
    assert index.search(vectors(2)[1], 1)[0].metadata == {}
    assert index.delete(ids[:5]) == 5 and index.delete(ids[0]) == 0
    with pytest.raises(InvalidInputError, match="in the index already: "):
        index.add(vectors(len(HARD) - 5), ids=HARD[5:], fingerprint=FINGERPRINT)


@every_kind
def test_vectors_of_any_type_and_norm(kind: str, make_index: MakeIndex) -> None:
    index, array = make_index(kind), vectors(4)
    scaled = array * np.array([[1e-30], [1e30], [1], [2]], np.float32)
    index.add(scaled[:1], ids=["a"], fingerprint=FINGERPRINT)
    index.add(scaled[1:2].astype(np.float64), ids=["b"], fingerprint=FINGERPRINT)
    index.add(array[2].astype(np.float16), ids=["c"], fingerprint=FINGERPRINT)
    index.add(embeddings(np.asfortranarray(array[3:])), ids=["d"])
    for query in (array, array.astype(np.float16), embeddings(array), array * 1e20):
        found = index.search_batch(query, 1)
        assert [ids_of(matches) for matches in found] == [["a"], ["b"], ["c"], ["d"]]
        assert all(matches[0].score == pytest.approx(1, abs=1e-3) for matches in found)


@in_both_stores
@pytest.mark.parametrize(
    ("ids", "options", "says"),
    [
        (["a", "a"], {}, "given more than once: 'a'"),
        (["a"], {}, "2 items, 1 ids and 1 metadata"),
        (["a", "b"], {"metadata": [{}]}, "2 items, 2 ids and 1 metadata"),
        (["a", 2], {}, "not 2. Convert others by str()"),
        (["a", ["b"]], {}, "not ['b']"),
        (["a", ""], {}, "non-empty str without control characters, not ''"),
        (["a", "b\n"], {}, "not 'b\\n'"),
        (["a", "\ud800"], {}, "not '\\ud800'"),
        ("ab", {}, "ids is 'ab'. Pass a list"),
        (
            ["a", "b"],
            {"metadata": {"a": 1}},
            "metadata is of type dict, which holds values under names. Pass a list with a dict or None for each item",
        ),
        (["a", "b"], {"metadata": [{}, {"a": {1}}]}, "metadata 1: the field 'a' is no metadata: {1} is of type set"),
        (["a", "b"], {"metadata": [{}, {"a": float("nan")}]}, "metadata 1: the field 'a' is no metadata: nan is no"),
        (["a", "b"], {"metadata": [{1: 2}, {}]}, "the field 1 is no metadata: its name is of type int"),
        (["a", "b"], {"metadata": [["a"], {}]}, "metadata 0: it is of type list"),
        (["a", "b"], {"metadata": [[], {}]}, "metadata 0: it is of type list"),
        (["a", "b"], {"metadata": [{"a": "\ud800"}, {}]}, "the field 'a' is no metadata: 'utf-8' codec can't"),
        (["a", "b"], {"fingerprint": None}, "an array does not tell"),
        (["a", "b"], {"fingerprint": "other"}, "items are of the model with fingerprint 'other'"),
        (["a", "b"], {"items": np.zeros((2, DIMENSIONS))}, "items has rows that are zero, or whose norm is: [0, 1]"),
        (
            ["a", "b"],
            {"items": np.array([[np.nan], [1]]) * np.ones(DIMENSIONS)},
            "rows that are not finite, or whose norm is not: [0]",
        ),
        (["a", "b"], {"items": np.ones((2, 8))}, "items are float64 (2, 8); this index takes floats (n, 16)"),
        (["a", "b"], {"items": np.ones((2, DIMENSIONS), int)}, "items are int64"),
        (["a", "b"], {"items": ["one", "two"]}, "an item needs to be embedded, but this index has no client"),
        (["a", "b"], {"items": embeddings(vectors(2), "other"), "fingerprint": None}, "fingerprint 'other'"),
        (["a", "b"], {"items": 3}, "items is 3. Pass one item"),
        (["a", "b"], {"items": vectors(2).astype(np.longdouble)}, "items are float128"),
        (["a", "b"], {"metadatas": [{}, {}]}, "metadatas is no argument of this method"),
        (
            ["a", "b"],
            {"items": ["one", "two"], "pixels": 3},
            "pixels is no argument of this method. Items take max_pix",
        ),
        (["a", "b"], {"metadata": 5}, "metadata is 5"),
        ({"a", "b"}, {}, "ids is of type set, whose order is not that of the items"),
        ({"a": 1, "b": 2}, {}, "ids is of type dict, which holds values under names"),
        (5, {}, "ids is 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(kind: str, ids: Any, options: dict[str, Any], says: str, make_index: MakeIndex) -> None:
    index = make_index(kind)
    for change in (index.add, index.upsert):
        with pytest.raises(InvalidInputError) as caught:
            change(**{"items": vectors(2), "ids": ids, "fingerprint": FINGERPRINT, **options})
        assert says in str(caught.value)
    assert len(index) == 0


@in_both_stores
def test_an_id_that_is_there_is_refused_before_anything_is_added(kind: str, make_index: MakeIndex) -> None:
    index, exhaustive = filled(make_index, kind, 5)
    with pytest.raises(InvalidInputError, match=r"already: 'row 3'\. Nothing was added; upsert replaces"):
        index.add(vectors(3, seed=9), ids=["new", "row 3", "newer"], fingerprint=FINGERPRINT)
    assert_congruent(kind, index, exhaustive, vectors(3), 10)


@every_kind
def test_all_or_nothing(kind: str, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index, "BLOCK_ROWS", 7)
    index, exhaustive = filled(make_index, kind, 30)
    add, calls = index._store.add, []

    def failing(*block: Any) -> None:
        calls.append(block)
        if len(calls) == 3:
            raise MemoryError
        add(*block)

    monkeypatch.setattr(index._store, "add", failing)
    with pytest.raises(MemoryError):
        index.add(vectors(40, seed=5), ids=numbered(40, start=30), fingerprint=FINGERPRINT)
    assert_congruent(kind, index, exhaustive, vectors(3), 100)
    monkeypatch.undo()
    index.add(vectors(40, seed=5), ids=numbered(40, start=30), fingerprint=FINGERPRINT)
    assert len(index) == 70


@pytest.mark.parametrize("kind", FAISS)
@pytest.mark.parametrize("change", ["add", "upsert"])
def test_vectors_that_faiss_did_not_keep(
    kind: str, change: str, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail after FAISS has added vectors, or in a first pass before it has, and hold the index to what it had."""
    index, exhaustive = filled(make_index, kind)
    kept = index._store._vectors  # type: ignore[attr-defined]
    parts = [kept.index] if kind in ("hnsw", "ivfpq", "flat") else [kept.index, kept._coarse]
    for part in parts:
        with monkeypatch.context() as patched:

            def failing(array: np.ndarray, part: Any = part) -> None:
                part.add(array)
                raise MemoryError

            patched.setattr(kept, "add", failing)
            with pytest.raises(MemoryError):
                getattr(index, change)(
                    vectors(40, seed=5),
                    ids=numbered(40, start=290 + 10 * (change == "add")),
                    metadata=[{"number": number, "third": "x"} for number in range(40)],
                    fingerprint=FINGERPRINT,
                )
        if change == "upsert" and kind != "hnsw":  # rows that were there are replaced before others are added
            replaced = vectors(40, seed=5)[:10]
            exhaustive.upsert(numbered(10, start=290), replaced, [{"number": n, "third": "x"} for n in range(10)])
        assert len(index) == 300
        assert_congruent(kind, index, exhaustive, vectors(10, seed=6), 20)
    new = vectors(50, seed=7)
    index.add(new, ids=numbered(50, start=1000), fingerprint=FINGERPRINT)
    exhaustive.upsert(numbered(50, start=1000), new, [None] * 50)
    assert_congruent(kind, index, exhaustive, vectors(10, seed=6), 20)


@every_kind
@pytest.mark.parametrize("scale", [1e-40, 2e38])
def test_vectors_of_extreme_norms(kind: str, scale: float, make_index: MakeIndex) -> None:
    index = make_index(kind)
    index.add(np.full((1, DIMENSIONS), scale, np.float32), ids=["a"], fingerprint=FINGERPRINT)
    for query in (np.full(DIMENSIONS, scale, np.float32), np.ones(DIMENSIONS), np.ones(DIMENSIONS, np.float16)):
        assert index.search(query)[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("query", "options", "says"),
    [
        (vectors(1), {"k": 0}, "k is 0"),
        (vectors(1), {"k": -1}, "k is -1"),
        (vectors(1), {"k": 1.5}, "k is 1.5"),
        (vectors(1), {"k": True}, "k is True"),
        (vectors(2), {}, "query is 2 of them"),
        (["a", "b"], {}, "query is 2 of them"),
        (vectors(1)[:, :8], {}, "queries are float32 (1, 8)"),
        (vectors(1) * np.inf, {}, "not finite"),
        (vectors(1) * 0, {}, "queries has rows that are zero"),
        (vectors(1), {"fingerprint": "other"}, "queries are of the model with fingerprint 'other'"),
        (embeddings(vectors(1), "other"), {}, "they have nothing in common. Use a server of that model"),
        ("text", {}, "a query that is no vector needs to be embedded"),
        ([0.5] * DIMENSIONS, {}, "query is 16 of them"),
        (vectors(1), {"filter": {"number": 1}}, "filter is no argument of this method. Vectors take none"),
        (vectors(1), {"where": "a"}, "where is 'a'"),
        (vectors(1), {"where": {1: 2}}, "the field 1"),
        (vectors(1), {"where": {"a\x00": 2}}, "the field 'a\\x00'"),
        (vectors(1), {"where": {"a": {"~": 2}}}, "the operator '~' for 'a'"),
        (vectors(1), {"where": {"a": {"in": "abc"}}}, "Pass a list"),
        (vectors(1), {"where": {"a": [1]}}, "compares 'a' with [1]"),
        (vectors(1), {"where": {"a": None}}, "compares 'a' with None"),
        (vectors(1), {"where": {"a": float("inf")}}, "compares 'a' with inf"),
        (vectors(1), {"where": {"a": float("nan")}}, "compares 'a' with nan"),
        (vectors(1), {"where": {"a": 2**63}}, "within 64 bits"),
        (vectors(1), {"where": {"a": "\x01"}}, "without control characters"),
        (vectors(1), {"where": {"a": {"<": True}}}, "Compare a boolean with == or !="),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_searches_that_are_refused(query: Any, options: dict[str, Any], says: str, make_index: MakeIndex) -> None:
    index, _ = filled(make_index, "flat", 3)
    with pytest.raises(InvalidInputError) as caught:
        index.search(query, **options)
    assert says in str(caught.value)


@in_both_stores
def test_items(kind: str, make_index: MakeIndex, client: EmbeddingClient, memory: MemoryTransport) -> None:
    index = make_index(kind, client=client, dimensions=6, instruction="find")
    assert index.info.fingerprint == client.info().fingerprint and index.info.dimensions == 6
    index.add(
        ["one", Item(text="two", image=b"\x89PNG"), b"\x89PNG"], ids=["1", "2", "3"], metadata=[{"a": 1}, None, None]
    )
    assert all("instruction" not in inputs for _, inputs in memory.requests)
    theirs = Exhaustive()
    rows = [
        vector(b"one", dimensions=6),
        vector(b"two", b"\x89PNG", dimensions=6),
        vector(b"", b"\x89PNG", dimensions=6),
    ]
    theirs.upsert(["1", "2", "3"], np.array(rows), [{"a": 1}, None, None])
    query = vector(b"one", b"", b"find", dimensions=6)
    cosines = theirs.cosines(query, lambda _: True)
    ours = index.search("one")
    assert {match.id: match.score for match in ours} == pytest.approx(cosines, abs=1e-5)
    assert [ids_of(matches) for matches in index.search_batch(["one", Item(text="one")])] == [ids_of(ours)] * 2
    assert ids_of(index.search(client.embed_query("one", "find", dimensions=6))) == ids_of(ours)
    index.upsert("four", ids=["1"])
    assert index.search("four", 1, where={"a": 1}) == [] and len(index) == 3
    with pytest.raises(InvalidInputError, match="item 1 of 2: item 1 is bad"):
        index.add(["five", "bad"], ids=["5", "6"])
    assert len(index) == 3
    with pytest.raises(InvalidInputError, match=r"cat\.png.*allow_reference_text=True"):
        index.search("cat.png")
    assert index.search("cat.png", allow_reference_text=True)


def test_nothing_is_embedded_for_an_id_that_is_there(
    make_index: MakeIndex, client: EmbeddingClient, memory: MemoryTransport
) -> None:
    index = make_index("flat", client=client)
    index.add("one", ids=["1"])
    num_requests = len(memory.requests)
    with pytest.raises(InvalidInputError, match="already"):
        index.add(["two", "three"], ids=["2", "1"])
    assert len(memory.requests) == num_requests


def test_indexes_that_are_refused(client: EmbeddingClient) -> None:
    known = {"dimensions": 16, "fingerprint": "f"}
    for arguments, says in [
        ({}, "an index needs to know its model"),
        ({"dimensions": 16}, "an index needs to know its model"),
        ({"dimensions": 0, "fingerprint": "f"}, "dimensions is 0"),
        ({"dimensions": 16, "fingerprint": 1}, "fingerprint is 1"),
        ({"client": client, "dimensions": 9}, "this server takes 4 to 8"),
        ({"client": client, "fingerprint": "other"}, "the client's server embeds the model with fingerprint '0123"),
        ({"kind": "tree", **known}, "kind is 'tree'. Pass one of 'flat', 'hnsw', 'ivfpq', 'int8', 'binary'"),
        ({"kind": ["flat"], **known}, "kind is ['flat']"),
        ({"kind": "hnsw", "ef_search": 2**40, **known}, "ef_search is 1099511627776"),
        ({"kind": "hnsw", "m": 2**31, **known}, "m is 2147483648. Pass a whole number, 2 to 2048"),
        ({"kind": "flat", "m": 3, **known}, "m is no option of an index of kind 'flat', which takes none"),
        ({"kind": "hnsw", "nprobe": 3, **known}, "which takes m, ef_construction, ef_search"),
        ({"kind": "hnsw", "m": 0, **known}, "m is 0"),
        ({"kind": "hnsw", "m": 1.5, **known}, "m is 1.5"),
        ({"kind": "hnsw", "m": 1, **known}, "m is 1. Pass a whole number, 2 to 2048"),
        ({"kind": "ivfpq", "code_bytes": 3, **known}, "does not divide the 16 dimensions"),
        ({"kind": "ivfpq", "train_size": 10, **known}, "learns from 256 vectors or more"),
    ]:
        with pytest.raises(InvalidInputError) as caught:
            Index.create(**arguments)  # type: ignore[arg-type]
        assert says in str(caught.value)


def test_options_of_numpy(make_index: MakeIndex) -> None:
    options = make_index("hnsw", m=np.int64(8)).info.options
    assert options["m"] == 8 and type(options["m"]) is int


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, client: EmbeddingClient) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlembed\[index\]'"):
        Index.create(client=client)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlembed\[milvus\]'"):
        Index.connect("http://127.0.0.1:1", "name", client=client)


def test_matches_are_a_sequence(make_index: MakeIndex) -> None:
    index, _ = filled(make_index, "flat", 5)
    matches = index.search_batch(vectors(4), 2)
    assert len(matches) == 4 and [len(own) for own in matches] == [2] * 4
    assert matches[-1] == matches[3] == list(matches)[3] == matches[2:][1]
    assert matches[0] == index.search(vectors(4)[0], 2) == index.search(vectors(1), 2)
    index.delete(numbered(5))
    assert [len(own) for own in matches] == [2] * 4  # what was found stays
    with pytest.raises(IndexError):
        matches[4]


def test_ivfpq_gathers_then_learns(make_index: MakeIndex) -> None:
    index, exhaustive = make_index("ivfpq", train_size=300, nprobe=3, code_bytes=8), Exhaustive()
    array, metadata = vectors(900), [{"number": number} for number in range(900)]
    for start in range(0, 900, 299):
        rows = slice(start, start + 299)
        index.add(array[rows], ids=numbered(900)[rows], metadata=metadata[rows], fingerprint=FINGERPRINT)
        exhaustive.upsert(numbered(900)[rows], array[rows], metadata[rows])
        if start == 0:
            assert_congruent("ivfpq", index, exhaustive, array[:5], 10)
    assert index.delete(numbered(300)) == 300
    index.upsert(array[300:310] * 2, ids=numbered(10, start=300), metadata=metadata[:10], fingerprint=FINGERPRINT)
    assert len(index) == 600
    for num_met, least in ((600, 300), (10, 0)):
        where = {"number": {"<": 10}} if num_met == 10 else None
        found = index.search_batch(array[least : least + 50], 10, where=where)
        assert [len(matches) for matches in found] == [10] * 50
    found = index.search_batch(array[310:410], 10)
    cosine = [exhaustive.cosines(array[310 + i], lambda own: own["number"] >= 300) for i in range(100)]
    best = [set(sorted(own, key=own.__getitem__)[-10:]) for own in cosine]
    assert sum(len(best[i] & set(ids_of(found[i]))) for i in range(100)) > 500  # recall@10 of 0.5
    assert max(abs(match.score - cosine[i][match.id]) for i in range(100) for match in found[i]) < 0.3
    assert len(index.search(array[0], 600)) == 600  # more than the lists that are searched hold


def test_hnsw_forgets_what_was_deleted(make_index: MakeIndex) -> None:
    index, exhaustive = filled(make_index, "hnsw")
    for number in range(200):
        assert index.delete(f"row {number}") == 1
        del exhaustive.rows[f"row {number}"]
        assert len(index) == 299 - number
    assert index._store._vectors.index.ntotal < 134  # type: ignore[attr-defined]  # not more than a quarter is dead
    assert_congruent("hnsw", index, exhaustive, vectors(10, seed=4), 10)


@pytest.mark.parametrize("kind", [*FAISS, "milvus flat"])
def test_threads(kind: str, make_index: MakeIndex) -> None:
    """Change blocks of twenty rows in two threads while others search: no row is torn or lost."""
    index, exhaustive = filled(make_index, kind, 100)
    errors: list[BaseException] = []
    done = threading.Event()

    def run(work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def search() -> None:
        while not done.is_set():
            for match in index.search(vectors(1)[0], 50, where={"number": {"<": 50}}):
                assert match.metadata["number"] < 50
            for match in index.search(vectors(1)[0], 50, where={"seed": {">": 0}}):
                row = (int(match.id.split()[1]) - match.metadata["start"], match.metadata["seed"])
                assert abs(match.score - cosines[row]) < SCORE  # its metadata are those of its vector
            for matches in index.search_batch(vectors(3), 5):
                assert len(matches) == 5

    cosines = {
        (row, seed): cosine
        for seed in (1000, 1001, 2000, 2001)
        for row, cosine in enumerate(similarity(vectors(1), vectors(20, seed=seed))[0].tolist())
    }

    def change(start: int) -> None:
        for _ in range(5):
            ids = numbered(20, start)
            for write, seed in ((index.add, start), (index.upsert, start + 1)):
                metadata = [{"number": start, "start": start, "seed": seed}] * 20
                write(vectors(20, seed=seed), ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
            assert index.delete(ids) == 20

    searching = [run(search) for _ in range(2)]
    changing = [run(lambda start=start: change(start)) for start in (1000, 2000)]
    for thread in changing:
        thread.join()
    done.set()
    for thread in searching:
        thread.join()
    assert not errors
    assert_congruent(kind, index, exhaustive, vectors(5), 10)
