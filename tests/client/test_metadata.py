"""What Python, NumPy and pandas bring as metadata: it comes back exactly, or is refused by the name of its field."""

from __future__ import annotations

import datetime as dt
import json
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.client.conftest import INFO
from tests.client.indexes import FINGERPRINT, MakeIndex, ids_of, vectors
from vlembed import Index, InvalidInputError
from vlembed._checks import shown
from vlembed._metadata import decode_metadata, encode_metadata

in_both_stores = pytest.mark.parametrize("kind", ["flat", "milvus flat"])
DAY, MOMENT = dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, 3, 4, 5, 678)
BERLIN = dt.timezone(dt.timedelta(hours=1))
Colour = Enum("Colour", {"RED": "red"})
Level = IntEnum("Level", {"HIGH": 3})
Point = namedtuple("Point", ["x", "y"])

TAKEN: list[tuple[Any, Any]] = [
    (np.int8(-3), -3),
    (np.uint64(2**63 - 1), 2**63 - 1),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float16(0.5), 0.5),
    (np.float64(1e300), 1e300),
    (np.bool_(True), True),
    (np.str_("日本"), "日本"),
    (np.array(5), 5),
    (np.array("a"), "a"),
    (np.array([1, 2], np.int16), [1, 2]),
    (np.array([[0.5], [1.5]], np.float32), [[0.5], [1.5]]),
    (np.array([True, False]), [True, False]),
    (np.array(["a", "b"]), ["a", "b"]),
    (np.array([1, "b", None], object), [1, "b", None]),
    (np.array([]), []),
    (DAY, "2026-01-02"),
    (MOMENT, "2026-01-02T03:04:05.000678"),
    (MOMENT.replace(microsecond=0, tzinfo=BERLIN), "2026-01-02T03:04:05+01:00"),
    (dt.time(3, 4), "03:04:00"),
    (np.datetime64("2026-01-02"), "2026-01-02"),
    (np.datetime64("2026-01-02T03:04:05"), "2026-01-02T03:04:05"),
    (np.datetime64("2026-01-02T03:04:05.000678", "ns"), "2026-01-02T03:04:05.000678"),
    (np.datetime64("2026-01-02T03:04:05.000678009"), "2026-01-02T03:04:05.000678009"),
    (np.datetime64("1969-12-31T23:59:59.999999999"), "1969-12-31T23:59:59.999999999"),
    (np.array(["2026-01-02"], "datetime64[ns]"), ["2026-01-02T00:00:00"]),
    (pd.Timestamp("2026-01-02 03:04:05.000678"), "2026-01-02T03:04:05.000678"),
    (pd.Timestamp("2026-01-02 03:04:05.000678009"), "2026-01-02T03:04:05.000678009"),
    (pd.Timestamp("2026-01-02 03:04:05", tz="UTC"), "2026-01-02T03:04:05+00:00"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    ((1, "a"), [1, "a"]),
    (Point(1, 2), [1, 2]),
    (OrderedDict(a=1), {"a": 1}),
    (MappingProxyType({"a": (1,)}), {"a": [1]}),
    ({"deep": [{"when": DAY, "n": np.int64(1)}]}, {"deep": [{"when": "2026-01-02", "n": 1}]}),
    (pd.Series([1]).iloc[0], 1),
    (2**62 + 1, 2**62 + 1),
    (-0.0, -0.0),
    (1.0, 1.0),
    ("\x00\x7f\u2028", "\x00\x7f\u2028"),
]

REFUSED: list[tuple[Any, str]] = [
    (float("nan"), "nan is no number of JSON. What is missing is None"),
    (float("-inf"), "-inf is no number"),
    (np.float32("inf"), "inf is no number"),
    (np.array([1.0, np.nan]), "nan is no number"),
    (np.datetime64("NaT"), "is no date. What is missing is None"),
    (pd.NaT, "NaT is no date. What is missing is None"),
    (pd.NA, "<NA> is of type pandas"),
    (np.longdouble(1), "longdouble"),
    (np.complex64(1), "complex64"),
    (np.timedelta64(1, "s"), "timedelta64"),
    (np.datetime64(1, "ps"), "nor one in nanoseconds"),
    (np.datetime64(10**15, "s"), "nor one in nanoseconds"),
    (np.array([b"a"]), "numpy.ndarray, |S1"),
    (np.zeros(1, [("a", int)]), "numpy.ndarray"),
    (np.ma.masked_array([1], [True]), "MaskedArray"),
    (np.ma.masked, "MaskedConstant"),
    (b"bytes", "b'bytes' is of type bytes"),
    (bytearray(b"a"), "bytearray"),
    (Decimal("1.5"), "Decimal('1.5') is of type decimal.Decimal"),
    (Fraction(1, 3), "fractions.Fraction"),
    (dt.timedelta(1), "datetime.timedelta"),
    (pd.Timedelta(1), "Timedelta"),
    (1j, "complex"),
    ({1}, "{1} is of type set"),
    (frozenset("a"), "frozenset"),
    (Path("a"), "PosixPath"),
    (object(), "object"),
    (int, "type"),
    (iter([1]), "iterator"),
    (pd.Series([1, 2]), "Series"),
    (pd.Series([True]), "Series"),
    (pd.DataFrame({"a": [1]}), "DataFrame"),
    (pd.Index([1]), "Index"),
    (pa.array([1]), "pyarrow.lib.Int64Array"),
    (pa.scalar(1), "pyarrow.lib.Int64Scalar"),
    ({1: 2}, "its name is of type int"),
    ({None: 2}, "its name is of type NoneType"),
    ([{"a": {("x",): 1}}], "its name is of type tuple"),
    ("\ud800", "surrogates not allowed"),
    ({"\ud800": 1}, "surrogates not allowed"),
    (10**5000, "Exceeds the limit"),
]


def name_of(value: Any) -> str:
    return f"{type(value).__name__} {shown(value)[:30]}"


@in_both_stores
def test_what_is_taken_comes_back(kind: str, make_index: MakeIndex) -> None:
    index = make_index(kind)
    ids = [str(number) for number in range(len(TAKEN))]
    given = [{"field": value, "other": 1} for value, _ in TAKEN]
    index.add(vectors(len(TAKEN)), ids=ids, metadata=given, fingerprint=FINGERPRINT)
    found = {match.id: match.metadata for match in index.search(vectors(1)[0], len(TAKEN))}
    for own, (value, theirs) in zip(ids, TAKEN, strict=True):
        assert json.dumps(found[own]) == json.dumps({"field": theirs, "other": 1}), name_of(value)


@pytest.mark.parametrize(("value", "told"), REFUSED, ids=[name_of(value) for value, _ in REFUSED])
def test_what_is_refused_is_named_by_its_field(value: Any, told: str) -> None:
    for nested in (value, [value], {"deep": value}):
        with pytest.raises(InvalidInputError) as caught:
            encode_metadata({"fine": 1, "the field": nested})
        assert "the field 'the field' is no metadata: " in str(caught.value)
        assert told in str(caught.value)
        assert len(str(caught.value)) < 500


@in_both_stores
@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ([{}, {"when": pd.NaT}], "metadata 1: the field 'when' is no metadata: NaT is no date"),
        ([{}, pd.Series({"a": 1})], "metadata 1: it is of type pandas.Series. Pass its to_dict()."),
        ([pd.Series(dtype=object), None], "metadata 0: it is of type pandas.Series"),
        ([pd.Series([True, False]), None], "metadata 0: it is of type pandas.Series"),
        ([np.array([1, 2]), None], "metadata 0: it is of type numpy.ndarray"),
        ([np.zeros(2), None], "metadata 0: it is of type numpy.ndarray"),
        ([{}, float("nan")], "metadata 1: it is of type float"),
        ([0, None], "metadata 0: it is of type int"),
        (["", None], "metadata 0: it is of type str"),
        ([pd.NA, None], "metadata 0: it is of type pandas"),
        (
            pd.DataFrame({"a": [1, 2]}),
            "metadata is of type pandas.DataFrame, which holds values under names. Pass a list",
        ),
        (pd.Series([1, 2]), "metadata 0: it is of type "),
        (pa.table({"a": [1, 2]}), "metadata is of type pyarrow.lib.Table, which holds values under names"),
        (np.array([1, 2]), "metadata is a numpy array int64 (2,). Pass a list with a dict or None"),
        (
            [{"deep": json.loads("[" * 900 + "]" * 900)}] * 2,
            "metadata 0: the field 'deep' is no metadata: it is nested",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_of_metadata_that_are_none(kind: str, make_index: MakeIndex, metadata: Any, told: str) -> None:
    index = make_index(kind)
    for change in (index.add, index.upsert):
        with pytest.raises(InvalidInputError) as caught:
            change(vectors(2), ids=["a", "b"], metadata=metadata, fingerprint=FINGERPRINT)
        assert told in str(caught.value)
    assert len(index) == 0


@in_both_stores
def test_records_of_pandas(kind: str, make_index: MakeIndex) -> None:
    frame = pd.DataFrame({"when": pd.to_datetime(["2026-01-02", "2026-03-04"]), "n": [1, 2], "text": ["a", "b"]})
    index = make_index(kind)
    for metadata in (frame.to_dict("records"), pd.Series(frame.to_dict("records"))):
        index.upsert(vectors(2), ids=["a", "b"], metadata=metadata, fingerprint=FINGERPRINT)
        assert index.search(vectors(1)[0], 1)[0].metadata == {"when": "2026-01-02T00:00:00", "n": 1, "text": "a"}
    for row in (frame.loc[0].to_dict(), dict(frame.loc[0])):
        index.upsert(vectors(1), ids=["a"], metadata=[row], fingerprint=FINGERPRINT)
        assert index.search(vectors(1)[0], 1)[0].metadata["n"] == 1


@in_both_stores
def test_a_filter_takes_what_metadata_take(kind: str, make_index: MakeIndex) -> None:
    index = make_index(kind)
    days = pd.date_range("2026-01-01", periods=4)
    metadata = [{"day": day, "n": np.float32(number / 10), "id": UUID(int=number)} for number, day in enumerate(days)]
    index.add(vectors(4), ids=list("abcd"), metadata=metadata, fingerprint=FINGERPRINT)

    def found(where: dict[str, Any]) -> list[str]:
        return sorted(ids_of(index.search(vectors(1)[0], 4, where=where)))

    assert found({"day": days[1]}) == found({"day": dt.datetime(2026, 1, 2)}) == ["b"]
    assert found({"day": {">=": np.datetime64("2026-01-03T00:00:00")}}) == found({"day": {">": days[1]}}) == ["c", "d"]
    assert found({"day": {">=": dt.date(2026, 1, 3)}}) == ["c", "d"]
    assert found({"n": np.float32(0.1)}) == found({"n": np.array(np.float32(0.1))}) == ["b"]
    assert found({"id": {"in": [UUID(int=2), UUID(int=3)]}}) == ["c", "d"]
    for value, _ in REFUSED:
        for relation, asked in (("==", value), (">", value), ("in", [value])):
            with pytest.raises(InvalidInputError, match="where compares 'n' with"):
                found({"n": {relation: asked}})


def test_a_message_does_not_grow_with_a_filter() -> None:
    index = Index.create(dimensions=8, fingerprint=INFO["fingerprint"])
    long = "a" * 1_000_000
    wrong = [
        long,
        {long: {"~": 1}},
        {"a": {long: 1}},
        {"a": {"in": long}},
        {long: None},
        {"a": f"{long}\n"},
        {"a": [long]},
    ]
    for where in [*wrong, {long: {">": True}}, {"a": pd.Series([long] * 100)}]:
        with pytest.raises(InvalidInputError) as caught:
            index.search(np.ones(8), where=where)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 700


def test_text_of_metadata_is_that_of_json() -> None:
    """Whoever reads an index's file or a shard finds JSON, one line for a row."""
    fields = {"a": 'Ü\n\t"', "": [1, None, {"a:b": True}], "big": 2**70}
    text = encode_metadata(fields)
    assert "\n" not in text
    assert decode_metadata(text) == json.loads(text) == fields
    assert encode_metadata({}) == encode_metadata(None) == ""
