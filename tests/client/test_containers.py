"""Containers of items, ids and metadata: columns are lists, and what yields names when iterated over is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import MemoryTransport, vector
from tests.client.indexes import FINGERPRINT, vectors
from vlembed import EmbeddingClient, Index, InvalidInputError, Item, ItemError

TEXTS = ["red apple", "猫", "text"]  # the last is the name of a column, too
NAMES = ["id", "text", "year"]
ROWS = [{"id": f"row {number}", "text": text, "year": 2020 + number} for number, text in enumerate(TEXTS)]


class Frame:
    """A table as most libraries have it: iteration yields the names of its columns."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    @property
    def columns(self) -> list[str]:
        return self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)


class Rows:
    """A data set of rows, as the library datasets has it."""

    @property
    def column_names(self) -> list[str]:
        return NAMES

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(ROWS)


class Group:
    """Members under names, in a class that does not say that it is a mapping."""

    def keys(self) -> list[str]:
        return NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)


def pandas_table() -> Any:
    return pytest.importorskip("pandas").DataFrame(ROWS)


def polars_table() -> Any:
    return pytest.importorskip("polars").DataFrame(ROWS)


def arrow_table() -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


def arrow_batch() -> Any:
    return pytest.importorskip("pyarrow").RecordBatch.from_pylist(ROWS)


TABLES = {
    "pandas": pandas_table,
    "polars": polars_table,
    "pyarrow table": arrow_table,
    "pyarrow batch": arrow_batch,
    "frame": lambda: Frame(NAMES),
    "dict": lambda: dict.fromkeys(NAMES, TEXTS),
    "ordered dict": lambda: OrderedDict.fromkeys(NAMES, TEXTS),
    "mapping": lambda: MappingProxyType(dict.fromkeys(NAMES, TEXTS)),
    "group": Group,
    "structured array": lambda: np.array([("a", "b")] * 3, [("id", "U9"), ("text", "U9")]),
}
COLUMNS = {
    "numpy strings": lambda: np.array(TEXTS),
    "numpy objects": lambda: np.array(TEXTS, object),
    "pandas": lambda: pandas_table()["text"],
    "pandas with labels": lambda: pandas_table().set_index(np.array(["columns", "keys", "dtype"]))["text"],
    "pandas categories": lambda: pandas_table()["text"].astype("category"),
    "pandas array": lambda: pandas_table()["text"].array,
    "polars": lambda: polars_table()["text"],
    "pyarrow chunks": lambda: arrow_table()["text"],
    "pyarrow array": lambda: arrow_table()["text"].combine_chunks(),
    "pyarrow dictionary": lambda: arrow_table()["text"].dictionary_encode(),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "generator": lambda: (text for text in TEXTS),
}
tables = pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
columns = pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)


def expected(texts: list[str]) -> np.ndarray:
    return np.array([vector(text.encode()) for text in texts])


@tables
def test_a_table_is_no_sequence_of_items(make: Any, client: EmbeddingClient, memory: MemoryTransport) -> None:
    index = Index.create(client=client)
    table = make()
    for embed in (
        client.embed,
        client.embed_query,
        client.embed_document,
        client.embed_many,
        lambda items: client.similarity(items, "other"),
        lambda items: client.similarity("other", items),
        lambda items: index.add(items, ids=TEXTS),
        lambda items: index.upsert(items, ids=TEXTS),
        index.search,
        index.search_batch,
    ):
        with pytest.raises(InvalidInputError, match=r'^items is .* as table\["text"\]'):
            embed(table)
    assert not {text for _, inputs in memory.requests for text in inputs["text"]} & {name.encode() for name in NAMES}
    assert len(index) == 0


@pytest.mark.parametrize("make", [Rows, lambda: pytest.importorskip("datasets").Dataset.from_list(ROWS)])
def test_neither_are_the_rows_of_a_data_set(make: Any, client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match=r'whose rows are no items.* as table\["text"\]'):
        client.embed(make())


@tables
def test_a_table_is_neither_ids_nor_metadata(make: Any) -> None:
    index = Index.create(dimensions=16, fingerprint=FINGERPRINT)
    table = make()
    for change in (index.add, index.upsert):
        with pytest.raises(InvalidInputError, match=r"^ids is .* Pass a list or a column of str"):
            change(vectors(3), ids=table, fingerprint=FINGERPRINT)
        with pytest.raises(InvalidInputError, match=r"^metadata is .* Pass a list with a dict or None for each item"):
            change(vectors(3), ids=TEXTS, metadata=table, fingerprint=FINGERPRINT)
    index.add(vectors(3), ids=NAMES, fingerprint=FINGERPRINT)
    with pytest.raises(InvalidInputError, match=r"^ids is "):
        index.delete(table)
    assert len(index) == 3


@columns
def test_a_column_is_a_list_of_items(make: Any, client: EmbeddingClient) -> None:
    np.testing.assert_array_equal(client.embed(make()).array, expected(TEXTS))
    rows = [row.embedding for row in client.embed_many(make())]
    np.testing.assert_array_equal(rows, expected(TEXTS))
    np.testing.assert_array_equal(client.similarity(make(), TEXTS), client.similarity(TEXTS, TEXTS))
    index = Index.create(client=client)
    index.add(make(), ids=["a", "b", "c"])
    assert list(index.search_batch(make(), 3)) == list(index.search_batch(TEXTS, 3))


@columns
def test_a_column_is_a_list_of_ids(make: Any) -> None:
    if isinstance(made := make(), type({}.keys())):
        pytest.skip("a set")
    index = Index.create(dimensions=16, fingerprint=FINGERPRINT)
    index.add(vectors(3), ids=made, fingerprint=FINGERPRINT)
    found = {match.id for match in index.search(vectors(1)[0], 3)}
    assert found == set(TEXTS) and {type(own) for own in found} == {str}
    assert index.delete(make()) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: [{"year": 1}, None, {"year": 3}],
        lambda: np.array([{"year": 1}, None, {"year": 3}], object),
        lambda: pytest.importorskip("pandas").Series([{"year": 1}, None, {"year": 3}]),
        lambda: pytest.importorskip("pyarrow").array([{"year": 1}, None, {"year": 3}]),
    ],
    ids=["list", "numpy", "pandas", "pyarrow"],
)
def test_metadata_in_a_column(make: Any) -> None:
    index = Index.create(dimensions=16, fingerprint=FINGERPRINT)
    index.add(vectors(3), ids=TEXTS, metadata=make(), fingerprint=FINGERPRINT)
    assert [match.id for match in index.search(vectors(1)[0], where={"year": 3})] == ["text"]


def test_rows_of_a_data_set_are_metadata() -> None:
    index = Index.create(dimensions=16, fingerprint=FINGERPRINT)
    index.add(vectors(3), ids=TEXTS, metadata=Rows(), fingerprint=FINGERPRINT)  # type: ignore[arg-type]
    assert index.search(vectors(1)[0], where={"year": 2022})[0].metadata == ROWS[2]


def missing_values() -> dict[str, Any]:
    values: dict[str, Any] = {"None": None, "nan": float("nan"), "float32": np.float32("nan")}
    try:
        import pandas
    except ImportError:
        return values
    return values | {"NA": pandas.NA, "NaT": pandas.NaT}


@pytest.mark.parametrize("value", missing_values().values(), ids=missing_values())
def test_missing_values_are_named_by_their_index(value: Any, client: EmbeddingClient, memory: MemoryTransport) -> None:
    array = np.empty(3, object)
    array[:] = ["a", value, value]
    for items in (["a", value, value], array):
        with pytest.raises(InvalidInputError) as caught:
            client.embed(items)
        assert [(item.index, item.code) for item in caught.value.items] == [(1, "ITEM_EMPTY"), (2, "ITEM_EMPTY")]
    outcomes = list(client.embed_many(array, on_error="return"))
    assert [isinstance(outcome, ItemError) for outcome in outcomes] == [False, True, True]
    if value is not None:
        with pytest.raises(InvalidInputError, match=r"text is of type .*, a missing value"):
            client.embed([Item(text=value)])
    assert [len(inputs["text"]) for _, inputs in memory.requests] == [1]


def test_missing_values_of_columns(client: EmbeddingClient) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    for column in (
        pandas.Series(["a", None]),
        pandas.Series(["a", None], dtype="string"),
        pandas.Series(["a", None], dtype=object),
        pyarrow.array(["a", None]),
    ):
        with pytest.raises(InvalidInputError) as caught:
            client.embed(column)
        assert [(item.index, item.code) for item in caught.value.items] == [(1, "ITEM_EMPTY")]


@pytest.mark.parametrize(
    "items",
    [np.array([b"\x89PNG\0\0"]), np.array([["a", "b"]]), np.array("a"), np.array([], "M8[s]")],
    ids=lambda items: f"{items.dtype} {items.ndim}",
)
def test_arrays_that_are_no_columns(items: np.ndarray, client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match="items is a numpy array"):
        client.embed(items)


def test_strings_of_numpy(client: EmbeddingClient) -> None:
    np.testing.assert_array_equal(client.embed(np.str_("text")).array, expected(["text"]))
    np.testing.assert_array_equal(client.embed([np.str_("a"), "b"]).array, expected(["a", "b"]))


def test_urls_in_a_mapping() -> None:
    with pytest.raises(InvalidInputError, match="url is of type dict, which holds values under names"):
        EmbeddingClient({"http://127.0.0.1:1": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["x\n" * 10_000, ["y" * 10_000] * 1000, {"z" * 10_000: 1}], ids=["str", "list", "dict"]
)
def test_no_message_grows_with_what_was_passed(value: Any, client: EmbeddingClient) -> None:
    index = Index.create(dimensions=16, fingerprint=FINGERPRINT)
    for call in (
        lambda: index.add(vectors(1), ids=value, fingerprint=FINGERPRINT),
        lambda: index.add(vectors(1), ids=[value], fingerprint=FINGERPRINT),
        lambda: index.search(vectors(1)[0], value),
        lambda: index.search(vectors(1)[0], fingerprint=value),
        lambda: client.embed(["a"], dimensions=value),
        lambda: Index.create(value, dimensions=16, fingerprint=FINGERPRINT),
        lambda: Index.create(dimensions=16, fingerprint=FINGERPRINT, instruction=[value]),
        lambda: client.similarity("a", "b", metric=value),
        lambda: client.embed_many("a", on_error=value),
        lambda: EmbeddingClient(value),
        lambda: index.search(vectors(1)[0], where=[value]),  # type: ignore[arg-type]
        lambda: index.search(vectors(1)[0], where={"a": [value]}),
        lambda: EmbeddingClient("grpc://127.0.0.1:1", timeout_s=value),
        lambda: EmbeddingClient("grpc://127.0.0.1:1", headers={"a": value}),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert len(str(caught.value)) < 1000
