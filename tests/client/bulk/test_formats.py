"""Every kind of file, read from any row on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlembed import InvalidInputError
from vlembed.bulk._formats import FORMATS, BadRowError, Cursor

START = Cursor(0, 1)


def read(path: Path, start: Cursor = START) -> list[tuple[Cursor, object]]:
    """Return all rows, errors as their messages."""
    rows = FORMATS[path.suffix].read(path, start)
    return [(cursor, str(row) if isinstance(row, BadRowError) else dict(row)) for cursor, row in rows]


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_jsonl(folder: Path) -> Path:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b"",
        b'{"text": "\xd0\xba\xd1\x96\xd1\x82"}',
        b"{broken",
        b"[1]",
        b"\xff",
    ]
    (folder / "rows.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "last", "n": 1}']))
    return folder / "rows.jsonl"


def write_csv(folder: Path) -> Path:
    text = '\ufefftext,n\r\nfirst,1\r\n\r\n"two\nlines, ""quoted""",2\r\nтри,\r\nfour\r\nfive,5,5\r\n'
    (folder / "rows.csv").write_bytes(text.encode() + b"\xff,6")
    return folder / "rows.csv"


def write_parquet(folder: Path) -> Path:
    table = pa.table({"text": [f"text {number}" for number in range(200)], "data": [b"\x00"] * 200})
    pq.write_table(table, folder / "rows.parquet", row_group_size=70)
    return folder / "rows.parquet"


def write_samples(folder: Path) -> Path:
    long_name = "long/" + "a" * 120  # a header of its own, before the member's
    members = {
        "./a/1.jpg": b"jpeg",
        "./a/1.txt": b"one\n",
        "./a/1.cls": b"3",
        "./a/1.bin": b"\xff",
        "b.json": b'{"caption": "two", "text": "overridden"}',
        "b.TXT": "два".encode(),
        f"{long_name}.png": b"png",
        f"{long_name}.json": b"{",
        "c.left.jpg": b"l",
        "c.right.jpg": b"r",
        "README": b"hello",
    }
    return write_tar(folder / "rows.tar", members)


WRITERS = [write_jsonl, write_csv, write_parquet, write_samples]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_can_be_read_from_any_row_on(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    rows = read(path)
    cursors = list(FORMATS[path.suffix].scan(path))
    assert cursors == [cursor for cursor, _ in rows]
    for number, cursor in enumerate(cursors):
        assert read(path, cursor) == rows[number:]


def test_json_lines(tmp_path: Path) -> None:
    rows = read(write_jsonl(tmp_path))
    assert [cursor.number for cursor, _ in rows] == [1, 3, 4, 5, 6, 7]
    first, kit, broken, array, not_utf8, last = (row for _, row in rows)
    assert (first, kit, last) == ({"text": "first"}, {"text": "кіт"}, {"text": "last", "n": 1})
    assert "b'{broken\\n' is no JSON" in str(broken)
    assert "is no JSON object" in str(array)
    assert "can't decode byte 0xff" in str(not_utf8)


def test_csv(tmp_path: Path) -> None:
    rows = read(write_csv(tmp_path))
    assert [cursor.number for cursor, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert [row for _, row in rows[:3]] == [
        {"text": "first", "n": "1"},
        {"text": 'two\nlines, "quoted"', "n": "2"},
        {"text": "три", "n": None},
    ]
    assert [str(row)[:19] for _, row in rows[3:5]] == ["the row has 1 cells", "the row has 3 cells"]
    assert rows[5][1] == {"text": "\udcff", "n": "6"}


def test_csv_as_excel_writes_it(tmp_path: Path) -> None:
    """A byte order mark, and then a quote."""
    (tmp_path / "rows.csv").write_bytes(b'\xef\xbb\xbf"id","text"\r\n"1","a"\r\n')
    ((_, row),) = read(tmp_path / "rows.csv")
    assert row == {"id": "1", "text": "a"}


def test_csv_with_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + '"' + ("x" * 999 + "\n") * 300 + "fine\n")
    monkeypatch.setattr("vlembed.bulk._formats.MAX_CELL_CHARACTERS", 131_072)
    rows = read(path)
    assert "field larger than field limit" in str(rows[0][1])
    assert rows[-1][1] == {"text": "fine"}
    assert read(path, rows[1][0]) == rows[1:]


def test_parquet(tmp_path: Path) -> None:
    rows = read(write_parquet(tmp_path))
    assert [row for _, row in rows] == [{"text": f"text {number}", "data": b"\x00"} for number in range(200)]
    assert [cursor.number for cursor, _ in rows] == list(range(1, 201))


def test_parquet_with_a_damaged_row_group_keeps_its_number_of_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    offset = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    rows = read(path)
    assert [cursor for cursor, _ in rows] == list(FORMATS[".parquet"].scan(path))
    assert [isinstance(row, str) for _, row in rows] == [False] * 70 + [True] * 70 + [False] * 60
    assert read(path, rows[100][0]) == rows[100:]


def test_webdataset(tmp_path: Path) -> None:
    one, two, three, four, five = (row for _, row in read(write_samples(tmp_path)))
    assert one == {"__key__": "a/1", "image": b"jpeg", "text": "one", "cls": "3", "bin": b"\xff"}
    assert two == {"__key__": "b", "caption": "two", "text": "два"}
    assert str(three).startswith(f"'long/{'a' * 120}.json': the line b'{{' is no JSON")
    assert "the sample has the images ['c.left.jpg', 'c.right.jpg']; an item has one" in str(four)
    assert five == {"__key__": "README", "": "hello"}


@pytest.mark.parametrize("damage", [b"", b"\xff" * 512])
def test_a_tar_that_is_damaged_is_not_taken_for_a_shorter_one(tmp_path: Path, damage: bytes) -> None:
    path = write_tar(tmp_path / "rows.tar", {f"{number}.txt": b"x" * 600 for number in range(20)})
    data = path.read_bytes()
    middle = 7 * 1536  # bytes: a member has a header of 512 and two blocks of data
    path.write_bytes(data[:middle] + damage + data[middle + 512 :] if damage else data[: middle - 700])
    with pytest.raises(InvalidInputError, match=r"cannot be read .*Repair it, or leave it out"):
        list(FORMATS[".tar"].scan(path))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.tar", "rows.csv"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"" if name == "rows.csv" else b"%PDF-1.7" * 100)
    with pytest.raises(InvalidInputError, match=f"{name}' cannot be read"):
        list(FORMATS[Path(name).suffix].scan(tmp_path / name))


@pytest.mark.parametrize(
    ("header", "told"),
    [(b"\n", "it has no header"), (b"id,text\r1,a\r", "its header: the row is no CSV")],
)
def test_a_csv_without_a_header_that_can_be_read(tmp_path: Path, header: bytes, told: str) -> None:
    (tmp_path / "rows.csv").write_bytes(header)
    with pytest.raises(InvalidInputError, match=told):
        FORMATS[".csv"].column_names(tmp_path / "rows.csv")


def test_a_row_that_python_cannot_hold(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    bad, fine = (row for _, row in read(tmp_path / "rows.parquet"))
    assert "can't decode byte 0xff" in str(bad)
    assert fine == {"text": "a"}


def test_lines_of_json_are_parsed_as_written(tmp_path: Path) -> None:
    fields = {"text": "a\u2028b", "deep": {"x": [1, None, True]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(fields, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read(tmp_path / "rows.jsonl") == [(Cursor(0, 1), fields)]
