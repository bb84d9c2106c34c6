"""Every kind of file, read from any row on."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlembed import InvalidInputError
from vlembed.bulk._format import BadRowError, Cursor
from vlembed.bulk._formats import FORMATS

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
    assert "is not UTF-8 ('utf-8' codec can't decode byte 0xff" in str(not_utf8)


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


NEVER_CLOSED = [
    ('text,n\n1,a\n"two\nlines",b\n3,"c\n4,d\n5,e\n', 5),  # to the end of the file
    ('text,n\n1,a\n2,"b\n3,"c"\n4,d\n', 3),  # closed by the next quote, within a cell
    ('text,n\n"1\n1","b\n3,c\n', 3),  # not the first quote of its row
    ('text,n\n1,"a"b\n', 2),
    ('text,n\n1,"a" \n', 2),
    ('text,n\n"\n', 2),
    ('"text,n\n1,a\n', 1),  # in the header
    ('text,n\n5" disk,"a\nb,c\n', 2),
    ('text,n\n1,"' + "x" * 2000 + '"\n2,b\n', 2),  # longer than any cell may be
]


@pytest.mark.parametrize(("content", "line"), NEVER_CLOSED)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_quote_that_leaves_in_doubt_which_rows_there_are(
    tmp_path: Path, content: str, line: int, suffix: str, line_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlembed.bulk._separated.MAX_CELL_CHARACTERS", 1000)
    path = tmp_path / f"rows{suffix}"
    content = content.replace(",", "\t" if suffix == ".tsv" else ",").replace("\n", line_end)
    path.write_bytes(content.encode())
    for use in (FORMATS[suffix].scan, lambda path: read(path)):
        with pytest.raises(
            InvalidInputError, match=rf"line {line} opens a quote that is never closed, or is closed within"
        ):
            list(use(path))


def test_a_quote_within_a_cell(tmp_path: Path) -> None:
    rows = ['1,5" disk', '2, "hello"', '3, "hello, you"', '4,"5"" disk"', '5,""', '"6",six', "7,seven"]
    (tmp_path / "rows.csv").write_text("n,text\n" + "\n".join(rows))
    *bad, quoted, empty, six, seven = (row for _, row in read(tmp_path / "rows.csv"))
    assert all("has a quote within a cell. Quote the cell, and double quotes in it" in str(row) for row in bad)
    assert len(bad) == 3
    assert [quoted, empty] == [{"n": "4", "text": '5" disk'}, {"n": "5", "text": None}]
    assert [six, seven] == [{"n": "6", "text": "six"}, {"n": "7", "text": "seven"}]


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_csv_writes_are_read_as_they_were(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    separator, suffix = chance.choice([(",", ".csv"), ("\t", ".tsv")])
    quoting, letters = chance.choice([(csv.QUOTE_ALL, 'ab",;\t\n\r |é'), (csv.QUOTE_MINIMAL, 'ab",;\t\n |é')])
    rows = [["".join(chance.choices(letters, k=chance.randrange(1, 9))) for _ in range(3)] for _ in range(50)]
    with (tmp_path / f"rows{suffix}").open("w", newline="", encoding="utf-8") as file:
        end = chance.choice(["\n", "\r\n"])
        writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=end)
        writer.writerows([["a", "b", "text"], *rows])
    told = [list(row.values()) for _, row in read(tmp_path / f"rows{suffix}") if isinstance(row, dict)]
    assert told == rows


def test_a_header_that_comes_again(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text\n1,a\nid,text\n2,b\n\ufeffid,text\n3,c\n\ufeff4,d\n", "utf-8")
    told = [isinstance(row, str) and "files were joined" in row for _, row in read(tmp_path / "rows.csv")]
    assert told == [False, True, False, True, False, True]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"id;text\n1;a\n", "its header has a semicolon, but cells are separated by a comma"),
        ("b.csv", b"id\ttext\n1\ta\n", "its header has a tab, but .* by a comma; convert it, or .* name it .tsv"),
        ("c.csv", b"id|text\n1|a\n", "its header has a vertical bar"),
        ("d.tsv", b"id,text\n1,a\n", "its header has a comma, but cells are separated by a tab"),
        ("e.csv", b"sep=;\nid;text\n", "its header has a semicolon"),
        ("f.csv", "größe,text\n1,a\n".encode("latin-1"), "its header is not UTF-8; save the file as UTF-8"),
        ("g.csv", b"id,text\r1,a\r", "line 1 has a carriage return alone"),
        ("h.csv", b"id,text\n1,a\r2,b\r3,c\n", "line 2 has a carriage return alone"),
        ("i.csv", b"id,text\n1,a\n2,\0\0\n", "line 3 has a NUL byte"),
        ("j.csv", "id,text\n".encode("utf-16-le"), "line 1 has a NUL byte"),
        *((f"{own}.{suffix}", f"text\n{own}\n".encode(own), f"it is {own.upper()}; save it as UTF-8")
          for own in ("utf-16", "utf-32") for suffix in ("csv", "tsv", "jsonl")),
        ("k.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "it has NUL bytes, as UTF-16 does; save it as UTF-8"),
        ("l.jsonl", b'[{"text": "a"}, {"text": "b"}]', "it is a JSON array, .*write an object a line"),
        ("m.jsonl", b'\xef\xbb\xbf \n[\n  {"text": "a"},\n  {"text": "b"}\n]\n', "it is a JSON array"),
        ("n.jsonl", b"[" + b'{"text": "a"},\n' * 10_000 + b"{}]", "it is a JSON array"),
        ("o.jsonl", b'{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "or an object of several lines"),
        ("p.ndjson", b'{"text": "a",\n"n": 1}\n', "or an object of several lines"),
        ("s.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "or has several objects in a line"),
        ("t.jsonl", b'{"text": "a"} {"text": "b"}\n', "or has several objects in a line"),
        *((f"{own}.{suffix}", data, f"it is {what}; ")
          for own, data, what in [
              ("gz", gzip.compress(b"text\n"), "gzip"),
              ("bz2", bz2.compress(b"text\n"), "bzip2"),
              ("xz", lzma.compress(b"text\n"), "xz"),
              ("zip", b"PK\x03\x04....", "a zip archive or a workbook of Excel"),
              ("pdf", b"%PDF-1.7", "a PDF"),
              ("html", b"\n<!DOCTYPE html><html>", "an HTML or XML page"),
          ] for suffix in ("jsonl", "csv", "tsv", "parquet", "tar")),
        ("q.csv", b"PAR1....PAR1", "it is Parquet; name it .parquet"),
        ("r.tar", b"PAR1....PAR1", "it is Parquet; name it .parquet"),
    ],
)  # fmt: skip
def test_what_a_file_is_instead_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    """A run asks for the columns of each file, then for its rows."""
    (tmp_path / name).write_bytes(content)
    kind = FORMATS[Path(name).suffix]
    with pytest.raises(InvalidInputError, match=rf"{name}' cannot be read \(.*{told}.*\)\. Repair it, or leave it out"):
        kind.column_names(tmp_path / name), list(kind.scan(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "a", "text": "b"}', "an object has 'text' twice"),
        ('{"text": "a", "deep": [{"x": 1, "x": 1}]}', "an object has 'x' twice"),
        ('{"text": "a", "n": NaN}', "NaN is no JSON"),
        ('{"text": "a", "n": [-Infinity]}', "-Infinity is no JSON"),
        ('{"text": "a", "n": 1e999}', "the number 1e999 is beyond all floats"),
    ],
)
def test_what_python_would_read_in_its_own_way(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n[1]\n')
    fine, bad, _ = (row for _, row in read(tmp_path / "rows.jsonl"))
    assert fine == {"text": "fine"}
    assert told in str(bad)
    write_tar(tmp_path / "rows.tar", {"a.json": line.encode()})
    assert told in str(read(tmp_path / "rows.tar")[0][1])


def test_a_row_that_is_an_array_makes_no_file_an_array(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('[1]\n{"text": "fine"}\n')
    assert FORMATS[".jsonl"].column_names(tmp_path / "rows.jsonl") is None
    assert read(tmp_path / "rows.jsonl")[1][1] == {"text": "fine"}


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


MAC = {"__MACOSX/._a": b"\0\5", "._a.jpg": b"\0\5", "@eaDir/a.jpg": b"s", ".hidden.jpg": b"h", "__index__": b"i"}


@pytest.mark.parametrize("folder", ["", "train/", "./", "./deep/er/"])
def test_side_files_belong_to_no_sample(tmp_path: Path, folder: str) -> None:
    """As macOS's tar writes them: beside every member, so that they stand between those of a sample."""
    pairs = {"a.jpg": b"1", "a.txt": b"one", "b.jpg": b"2", "b.txt": b"two"}
    members = {}
    for name, data in pairs.items():
        members |= {f"{folder}._{name}": b"\0\5\x16\7", f"{folder}{name}": data}
    members |= {f"{folder}{name}": data for name, data in MAC.items() if name != "._a.jpg"}
    path = write_tar(tmp_path / "rows.tar", members)
    ignored = Counter[str]()
    cursors = list(FORMATS[".tar"].scan(path, ignored))
    rows = read(path)
    assert cursors == [cursor for cursor, _ in rows]
    key = folder.removeprefix("./")
    assert [row for _, row in rows] == [
        {"__key__": f"{key}a", "image": b"1", "text": "one"},
        {"__key__": f"{key}b", "image": b"2", "text": "two"},
    ]
    assert read(path, cursors[1]) == rows[1:]
    assert ignored == {"side files": 8}


@pytest.mark.parametrize("apart", [["a.jpg", "b.jpg", "a.txt", "b.txt"], ["a.txt", "b.txt", "a.txt"]])
def test_members_of_a_sample_that_stand_apart(tmp_path: Path, apart: list[str]) -> None:
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name in apart:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(InvalidInputError, match=r"the sample 'a' is there twice, apart.* tar --sort=name"):
        list(FORMATS[".tar"].scan(tmp_path / "rows.tar"))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_member_that_is_a_link_is_not_left_out_of_its_sample(tmp_path: Path, kind: bytes) -> None:
    """As tar writes a file that it has written under another name already."""
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name in ("a.jpg", "a.txt", "b.jpg", "b.txt"):
            member = tarfile.TarInfo(name)
            if name == "b.jpg":
                member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    fine, bad = (row for _, row in read(tmp_path / "rows.tar"))
    assert isinstance(fine, dict)
    assert "'b.jpg' is a link. Write the file itself: tar --dereference --hard-dereference" in str(bad)


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name in ("a.txt", "a.TXT", "b.txt"):
            tar.addfile(tarfile.TarInfo(name))
    (_, bad), _ = read(tmp_path / "rows.tar")
    assert "the sample has ['txt'] twice" in str(bad)


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


def test_a_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"\n")
    with pytest.raises(InvalidInputError, match="it has no header"):
        FORMATS[".csv"].column_names(tmp_path / "rows.csv")


def test_a_row_that_python_cannot_hold(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    bad, fine = (row for _, row in read(tmp_path / "rows.parquet"))
    assert "can't decode byte 0xff" in str(bad)
    assert fine == {"text": "a"}


TIMES = 1_767_323_045_000_678_000  # ns: 2026-01-02T03:04:05.000678
SHORT = TIMES + 9
TEMPORAL: list[tuple[str, pa.DataType, list[int], list[str]]] = [
    ("us", pa.timestamp("us"), [TIMES // 1000], ["2026-01-02T03:04:05.000678"]),
    ("ns", pa.timestamp("ns"), [TIMES, SHORT], ["2026-01-02T03:04:05.000678", "2026-01-02T03:04:05.000678009"]),
    ("early", pa.timestamp("ns"), [-1], ["1969-12-31T23:59:59.999999999"]),
    ("zone", pa.timestamp("ns", "+01:00"), [SHORT], ["2026-01-02T04:04:05.000678009+01:00"]),
    ("whole zone", pa.timestamp("s", "UTC"), [1_767_323_045], ["2026-01-02T03:04:05+00:00"]),
    ("time", pa.time64("ns"), [1, 60 * 10**9], ["00:00:00.000000001", "00:01:00"]),
    ("short time", pa.time32("s"), [61], ["00:01:01"]),
    ("date", pa.date32(), [20_455], ["2026-01-02"]),
    ("duration", pa.duration("ns"), [1, 90 * 10**9, -5 * 10**8], ["PT0.000000001S", "PT90S", "-PT0.5S"]),
    ("long", pa.duration("s"), [86_400], ["PT86400S"]),
    ("short", pa.duration("us"), [-1], ["-PT0.000001S"]),
]


def temporal_table() -> pa.Table:
    """Return rows of times, also within lists, structs, maps and dictionaries, with nulls."""
    num_rows = max(len(values) for _, _, values, _ in TEMPORAL) + 1
    columns = {
        name: pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
        for name, kind, values, _ in TEMPORAL
    }
    columns = {name: pa.concat_arrays([own, pa.nulls(num_rows - len(own), own.type)]) for name, own in columns.items()}
    moments = columns["ns"]
    nested = pa.StructArray.from_arrays([moments, pa.array(["x"] * num_rows)], ["when", "what"])
    columns |= {
        "nested": nested,
        "listed": pa.ListArray.from_arrays(pa.array([0, 2, 2, 3, 4][: num_rows + 1]), nested),
        "keyed": pa.MapArray.from_arrays(pa.array([0, 1, 2, 2, 3][: num_rows + 1]), pa.array(list("abcd")), moments),
        "coded": moments.dictionary_encode(),
        "text": pa.array([f"text {row}" for row in range(num_rows)]),
    }
    return pa.table(columns)


def test_times_of_parquet_need_no_pandas(tmp_path: Path) -> None:
    """Whether pandas is there changes what pyarrow makes of nanoseconds."""
    pq.write_table(temporal_table(), tmp_path / "rows.parquet")
    code = """if True:
        import json, sys
        from pathlib import Path
        class Absent:
            def find_spec(name, *_):
                if name in sys.argv[2:]:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent)
        from vlembed.bulk._formats import FORMATS
        from vlembed.bulk._format import Cursor
        from vlembed.bulk._rows import Columns, to_row
        path = Path(sys.argv[1])
        read = FORMATS[".parquet"].read(path, Cursor(0, 1))
        rows = [to_row(fields, Columns(), 0, "", path.parent, "") for _, fields in read]
        print(json.dumps([json.loads(row.metadata) for row in rows]))
        assert ("pandas" in sys.modules) == (not sys.argv[2:])
    """
    told = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / "rows.parquet"), *without],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                check=True,
            ).stdout
        )
        for without in ([], ["pandas"])
    ]
    assert told[0] == told[1]
    for name, _, values, texts in TEMPORAL:
        assert [row[name] for row in told[0]] == texts + [None] * (len(told[0]) - len(values)), name
    whole, short = TEMPORAL[1][3]
    assert told[0][0]["nested"] == {"when": whole, "what": "x"}
    assert told[0][0]["listed"] == [{"when": whole, "what": "x"}, {"when": short, "what": "x"}]
    assert told[0][1]["keyed"] == [["b", short]]
    assert [row["coded"] for row in told[0]][:2] == [whole, short]


def test_a_time_that_python_cannot_hold_is_named_by_its_column(tmp_path: Path) -> None:
    when = pa.array([1 << 45, 0]).cast(pa.timestamp("s"))
    pq.write_table(pa.table({"text": ["a", "b"], "when": when}), tmp_path / "rows.parquet")
    bad, fine = (row for _, row in read(tmp_path / "rows.parquet"))
    assert "what Python cannot in the column 'when'" in str(bad)
    assert isinstance(fine, dict)


def test_lines_of_json_are_parsed_as_written(tmp_path: Path) -> None:
    fields = {"text": "a\u2028b", "deep": {"x": [1, None, True]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(fields, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read(tmp_path / "rows.jsonl") == [(Cursor(0, 1), fields)]
