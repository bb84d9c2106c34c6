"""Runs over every kind of input, their errors, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.client.bulk.conftest import Run, read_folder
from tests.client.bulk.test_formats import write_tar
from tests.client.conftest import INFO, MemoryTransport, vector
from tests.samples import encode, image
from vlembed import InvalidInputError, MissingExtraError, OutputError, ServerError
from vlembed.bulk import Columns, verify
from vlembed.bulk._manifest import read_manifest
from vlembed.bulk._rows import Failure, to_row

PNG = encode(image(32, 32))


def test_every_row_is_in_the_output_once(run: Run, texts: Path, output: Path) -> None:
    report = run(texts)
    assert (report.num_rows, report.num_embedded, report.errors) == (35, 30, {"BAD": 3, "ROW_MALFORMED": 2})
    rows, errors = read_folder(output / "shards"), read_folder(output / "errors")
    assert [row["position"] for row in errors] == [3, 4, 11, 20, 34]
    assert [row["position"] for row in rows] == sorted(set(range(35)) - {3, 4, 11, 20, 34})
    for row in rows:
        text = f"text {row['position']}"
        assert row["id"] == f"id {row['position']}"
        assert json.loads(row["metadata"]) == {"n": row["position"], "text": text}
        assert row["embedding"] == vector(text.encode()).tolist()
        assert (row["text_tokens"], row["image_tokens"]) == (len(text), 0)
    assert [(row["id"], row["place"], row["code"]) for row in errors[1:3]] == [
        ("id 4", "texts.jsonl:5", "BAD"),
        ("texts.jsonl:12", "texts.jsonl:12", "ROW_MALFORMED"),
    ]
    assert verify(output).errors == report.errors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_a_shard_is(run: Run, texts: Path, output: Path, dtype: str) -> None:
    run(texts, dtype=dtype, dimensions=4, instruction="Find it.")
    file = next((output / "shards").iterdir())
    schema = pq.read_schema(file)
    element = pa.float32() if dtype == "float32" else pa.float16()
    assert schema.names == ["id", "metadata", "embedding", "text_tokens", "image_tokens", "position"]
    assert schema.types == [pa.string(), pa.string(), pa.list_(element, 4), pa.int32(), pa.int32(), pa.int64()]
    about = json.loads(schema.metadata[b"vlembed"])
    assert about["fingerprint"] == INFO["fingerprint"]
    assert (about["dimensions"], about["instruction"], about["dtype"]) == (4, "Find it.", dtype)
    row = read_folder(output / "shards")[0]
    assert row["embedding"] == vector(b"text 0", b"", b"Find it.", 4).astype(dtype).tolist()


def test_a_folder_of_images(run: Run, tmp_path: Path, output: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("b.png", "a/2.JPG", "a/1.png", "a/б.webp"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(PNG)
    (photos / "empty.gif").touch()
    (photos / "notes.txt").touch()
    (photos / ".DS_Store").touch()
    (photos / "link").symlink_to(photos / "a")
    report = run(photos)
    assert [row["id"] for row in read_folder(output / "shards")] == ["b.png", "a/1.png", "a/2.JPG", "a/б.webp"]
    assert [(row["id"], row["code"]) for row in read_folder(output / "errors")] == [("empty.gif", "IMAGE_EMPTY")]
    assert report.ignored == {".txt": 1, "side files": 1, "links to folders": 1}


def test_side_files_are_counted_each_time(run: Run, tmp_path: Path, output: Path) -> None:
    photos = tmp_path / "photos"
    side = [".hidden.png", "._a.png", ".thumbnails/a.png", "@eaDir/a.png/s.jpg", "__MACOSX/._a.png", "sub/Thumbs.db"]
    for name in ["a.png", "sub/b.png", *side]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(PNG)
    (photos / "loop").symlink_to(".")
    (photos / "again.png").symlink_to("a.png")
    for _ in range(2):
        report = run(photos)
        assert (report.num_rows, report.num_embedded) == (2, 2)
        assert report.ignored == {"side files": 6, "links to folders": 1, "links to files that are there": 1}
    assert [row["id"] for row in read_folder(output / "shards")] == ["a.png", "sub/b.png"]
    assert verify(output).ignored is None
    report = run([photos / ".hidden.png", photos / "again.png", photos / ".thumbnails"], output=tmp_path / "named")
    assert (report.num_embedded, report.ignored) == (3, {})


def test_side_files_of_tables_and_tars(run: Run, tmp_path: Path, output: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write_tar(rows / "a.tar", {"._1.jpg": b"\0\5", "1.jpg": PNG, "._1.txt": b"\0\5", "1.txt": b"one", "._2.txt": b"\0"})
    (rows / "._a.tar").write_bytes(b"\0\5\x16\7")
    for _ in range(2):
        assert run(rows).ignored == {"side files": 4}
    (row,) = read_folder(output / "shards")
    assert (row["id"], row["embedding"]) == ("a.tar:1", vector(b"one", PNG).tolist())
    assert verify(output).num_embedded == 1


def test_a_link_leads_to_a_file_once_over_all_inputs(run: Run, tmp_path: Path, output: Path) -> None:
    """As in a cache of files under the names of their content."""
    for name in ("blobs/1.png", "blobs/2.png", "real/r.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    for link, target in (("a/x.png", "blobs/1.png"), ("b/y.png", "blobs/1.png"), ("b/z.png", "real/r.png")):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / target)
    report = run([tmp_path / "a", tmp_path / "b", tmp_path / "real"])
    assert report.ignored == {"links to files that are there": 2}
    assert [row["id"] for row in read_folder(output / "shards")] == ["a/x.png", "real/r.png"]


def test_one_folder_by_two_names(run: Run, tmp_path: Path, output: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(PNG)
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(InvalidInputError, match="is inside the input"):
        run([photos, tmp_path / "link"])
    with pytest.raises(InvalidInputError, match="is inside the input"):
        run(photos, output=tmp_path / "link/out")
    assert run(tmp_path / "link").num_embedded == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_quote_that_is_never_closed_is_no_smaller_input(
    run: Run, tmp_path: Path, output: Path, memory: MemoryTransport, suffix: str
) -> None:
    separator = "\t" if suffix == ".tsv" else ","
    lines = [f"{number}{separator}text {number}" for number in range(100)]
    lines[5] = f'5{separator}"text 5'
    (tmp_path / f"rows{suffix}").write_text("\n".join([f"id{separator}text", *lines]))
    for _ in range(2):
        with pytest.raises(
            InvalidInputError, match=rf"rows{suffix}' cannot be read \(line 7 opens a quote that is never"
        ):
            run(tmp_path / f"rows{suffix}")
    assert not memory.requests
    with pytest.raises(InvalidInputError, match="is no output of a bulk run"):
        verify(output)
    lines[5] = f"5{separator}text 5"
    (tmp_path / f"rows{suffix}").write_text("\n".join([f"id{separator}text", *lines]))
    assert run(tmp_path / f"rows{suffix}").num_embedded == 100
    assert [row["id"] for row in read_folder(output / "shards")] == list(map(str, range(100)))


def test_what_was_not_checked_is_not_told_as_none(run: Run, texts: Path, output: Path) -> None:
    report = run(texts)
    assert report.duplicate_ids is None
    assert verify(output).duplicate_ids == {}
    assert run(texts).duplicate_ids is None
    assert run(texts, retry_errors=True).duplicate_ids is None


def test_rows_of_several_files_share_shards(run: Run, tmp_path: Path, output: Path) -> None:
    for name in ("b/x.csv", "a/y.csv", "a/x.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n" + "".join(f"{name} {number}\n" for number in range(8)))
    report = run([tmp_path / "b", tmp_path / "a/y.csv", tmp_path / "a/x.csv"])
    assert (report.num_rows, report.num_shards) == (24, 3)
    names = [f"{name}:{number}" for name in ("b/x.csv", "a/y.csv", "a/x.csv") for number in range(1, 9)]
    assert [row["id"] for row in read_folder(output / "shards")] == names


def test_columns_and_images_of_parquet(run: Run, tmp_path: Path, output: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.png").write_bytes(PNG)
    rows = [
        {
            "key": 1,
            "photo": {"bytes": PNG, "path": "gone.png"},
            "raw": b"x",
            "when": date(2026, 1, 2),
            "score": float("nan"),
        },
        {"key": 2, "photo": {"bytes": None, "path": "a.png"}, "caption": "кіт", "when": None, "score": 0.5},
        {"key": 3, "photo": None, "caption": None},
        {"key": None, "caption": "task", "task": "Find it."},
    ]
    schema = pa.schema({
        "key": pa.int64(),
        "photo": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "caption": pa.string(),
        "task": pa.string(),
        "when": pa.date32(),
        "score": pa.float64(),
        "raw": pa.binary(),
    })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "sub/rows.parquet")
    columns = Columns(id="key", text="caption", image="photo", instruction="task")
    run(tmp_path / "sub/rows.parquet", columns=columns)
    first, second, last = read_folder(output / "shards")
    assert (first["id"], second["id"], last["id"]) == ("1", "2", "rows.parquet:4")
    assert json.loads(first["metadata"]) == {"when": "2026-01-02", "score": None}
    assert first["embedding"] == vector(b"", PNG).tolist()
    assert second["embedding"] == vector("кіт".encode(), PNG).tolist()
    assert last["embedding"] == vector(b"task", b"", b"Find it.").tolist()
    assert [(row["id"], row["code"]) for row in read_folder(output / "errors")] == [("3", "ITEM_EMPTY")]


def test_images_of_json(run: Run, tmp_path: Path, output: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    images: list[Any] = ["a.png", str(tmp_path / "a.png"), uri, {"bytes": base64.b64encode(PNG).decode()}]
    bad = ["gone.png", "https://x.org/a.png", {"bytes": "*"}, 5, {}, ""]
    lines = [json.dumps({"image": value}) for value in images + bad]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    run(tmp_path / "rows.jsonl")
    expected = [vector(b"", data).tolist() for data in (PNG, PNG, uri.encode(), PNG)]
    assert [row["embedding"] for row in read_folder(output / "shards")] == expected
    assert [row["code"] for row in read_folder(output / "errors")] == [
        *("FILE_UNREADABLE", "IMAGE_IS_URL", "IMAGE_UNDECODABLE", "WRONG_TYPE", "ITEM_EMPTY", "ITEM_EMPTY")
    ]


def test_samples_of_webdataset(run: Run, tmp_path: Path, output: Path) -> None:
    members = {"1.jpg": PNG, "1.json": b'{"by": "me"}', "1.cls": b"7", "2.txt": b"two", "3.cls": b"8"}
    write_tar(tmp_path / "rows.tar", members)
    run(tmp_path / "rows.tar")
    one, two = read_folder(output / "shards")
    assert (one["id"], json.loads(one["metadata"])) == ("rows.tar:1", {"by": "me", "cls": "7"})
    assert (two["id"], two["embedding"]) == ("rows.tar:2", vector(b"two").tolist())
    (error,) = read_folder(output / "errors")
    assert (error["id"], error["place"], error["code"]) == ("rows.tar:3", "rows.tar:3", "ITEM_EMPTY")


@pytest.mark.parametrize("value", [float("inf"), [1.0, float("-inf")], {"deep": float("inf")}])
def test_metadata_without_a_form_in_json_are_named_by_their_field(
    run: Run, tmp_path: Path, output: Path, value: Any
) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "score": [value, None]}), tmp_path / "rows.parquet")
    run(tmp_path / "rows.parquet")
    assert [row["position"] for row in read_folder(output / "shards")] == [1]
    (error,) = read_folder(output / "errors")
    assert error["code"] == "METADATA_WRONG"
    assert "the field 'score' is no metadata: " in error["message"]


def test_metadata_that_files_alone_have(run: Run, tmp_path: Path, output: Path) -> None:
    fields = {
        "nan": [1.5, float("nan")],
        "price": [Decimal("1.50"), Decimal("-0.01")],
        "took": [timedelta(seconds=90), timedelta(microseconds=-1)],
        "when": [datetime(2026, 1, 2, 3, 4), datetime(2026, 1, 2, 3, 4, 5, 6)],
        "raw": [b"x", None],
    }
    pq.write_table(pa.table({"text": ["a", "b"], **fields}), tmp_path / "rows.parquet")
    run(tmp_path / "rows.parquet")
    first, second = (json.loads(row["metadata"]) for row in read_folder(output / "shards"))
    assert first == {"text": "a", "nan": 1.5, "price": "1.50", "took": "PT90S", "when": "2026-01-02T03:04:00"}
    assert second == {
        "text": "b",
        "nan": None,
        "price": "-0.01",
        "took": "-PT0.000001S",
        "when": "2026-01-02T03:04:05.000006",
        "raw": None,
    }


def test_metadata_that_is_nested_too_deeply(run: Run, tmp_path: Path, output: Path) -> None:
    lines = ['{"text": "fine", "deep": ' + "[" * depth + "]" * depth + "}" for depth in (1, 100_000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    run(tmp_path / "rows.jsonl")
    assert [row["position"] for row in read_folder(output / "shards")] == [0]
    assert [row["code"] for row in read_folder(output / "errors")] == ["ROW_MALFORMED"]


def test_metadata_that_json_reads_and_cannot_write(tmp_path: Path) -> None:
    """How deep that is differs between the releases of Python."""
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() + 1):
        deep = [deep]
    row = to_row({"text": "fine", "deep": deep}, Columns(), 0, "rows.jsonl:1", tmp_path, "rows.jsonl")
    assert isinstance(row, Failure)
    assert (row.code, row.message) == ("ROW_MALFORMED", "the row's metadata is nested too deeply. Flatten it.")


def test_rows_that_are_no_utf8(run: Run, tmp_path: Path, output: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"id,text,x\n\xff,fine,\n2,\xff,\n3,fine,\xff\n4,fine,\n")
    run(tmp_path / "rows.csv")
    assert [row["id"] for row in read_folder(output / "shards")] == ["4"]
    errors = [(row["id"], row["code"]) for row in read_folder(output / "errors")]
    assert errors == [("rows.csv:1", "ID_WRONG"), ("2", "TEXT_NOT_UTF8"), ("3", "TEXT_NOT_UTF8")]


@pytest.mark.parametrize("value", [True, 1.5, ["a"], "two\nlines", "\ud800"])
def test_ids_that_no_index_takes(run: Run, tmp_path: Path, output: Path, value: object) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": value, "text": "fine"}))
    run(tmp_path / "rows.jsonl")
    assert [row["code"] for row in read_folder(output / "errors")] == ["ID_WRONG"]


def test_options_may_be_of_numpy(run: Run, texts: Path) -> None:
    options = {"dimensions": 4, "max_pixels": 8192}
    report = run(texts, **{name: np.int32(value) for name, value in options.items()})
    assert report == run(texts, **options)


def test_rows_that_all_fail_unsent_are_not_gathered(
    run: Run, tmp_path: Path, output: Path, memory: MemoryTransport
) -> None:
    """Let the one row that is sent come last, and fail: the shards before it are finished all the same."""
    (tmp_path / "rows.jsonl").write_text("{\n" * 999 + json.dumps({"text": "last"}))

    def fail() -> None:
        raise ServerError("failed")

    memory.before_answer = fail
    with pytest.raises(ServerError):
        run(tmp_path / "rows.jsonl")
    assert len(read_manifest(output).records) > 80  # of 100


def test_a_finished_run_sends_nothing(run: Run, texts: Path, memory: MemoryTransport) -> None:
    report = run(texts)
    memory.requests.clear()
    assert run(texts) == report
    assert not memory.requests


@pytest.mark.parametrize("name", ["input.csv", "photos"])
def test_a_changed_input_is_refused(run: Run, tmp_path: Path, output: Path, name: str) -> None:
    source = tmp_path / name
    if name == "photos":
        source.mkdir()
        file = source / "a.png"
        file.write_bytes(PNG)
    else:
        file = source
        file.write_text("text\na\n")
    run(source)
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(InvalidInputError, match=rf"the input file '{file.name}' has changed since .* another output"):
        run(source)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    run(source)
    if name == "photos":
        (source / "b.png").write_bytes(PNG)
        with pytest.raises(InvalidInputError, match=r"None was expected, 'b\.png' is there"):
            run(source)


def test_an_input_may_move(run: Run, texts: Path, tmp_path: Path, output: Path) -> None:
    report = run(texts)
    (tmp_path / "elsewhere").mkdir()
    assert run(texts.rename(tmp_path / "elsewhere" / texts.name)) == report


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "float16"},
        {"dimensions": 4},
        {"instruction": "Find it."},
        {"max_pixels": 5000},
        {"truncate": True},
        {"allow_reference_text": True},
        {"shard_size": 11},
        {"columns": Columns(id="n")},
    ],
    ids=str,
)
def test_changed_options_are_refused(run: Run, texts: Path, changed: dict[str, Any]) -> None:
    run(texts)
    name = next(iter(changed))
    with pytest.raises(InvalidInputError, match=rf"^{name} is .* was begun with .*\. Use the same, or another output"):
        run(texts, **changed)
    run(texts, dimensions=8)  # the model's own number, said aloud


def test_a_changed_model_is_refused(
    run: Run, texts: Path, output: Path, memory: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_model() -> None:
        if b"text 25" in memory.requests[-1][1]["text"]:  # of the third shard
            monkeypatch.setitem(INFO, "fingerprint", "another")

    memory.before_answer = change_model
    for _ in range(2):  # while it runs, and later
        with pytest.raises(
            InvalidInputError, match=r"holds vectors of .*'0123456789abcdef'; the server now has 'another'"
        ):
            run(texts)
    assert 2 not in read_manifest(output).records
    monkeypatch.undo()
    memory.before_answer = lambda: None
    assert run(texts).num_embedded == 30


def test_errors_are_tried_again_alone(run: Run, tmp_path: Path, output: Path, memory: MemoryTransport) -> None:
    names = [f"{number:02}.png" for number in range(25)]
    lines = [json.dumps({"id": name, "image": f"photos/{name}"}) for name in names]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, '{"text": "bad"}']))
    shutil.copytree(make_images(tmp_path / "all", names), tmp_path / "photos")
    for number in (1, 2, 24):
        (tmp_path / f"photos/{number:02}.png").unlink()
    assert run(tmp_path / "rows.jsonl").errors == {"FILE_UNREADABLE": 3, "BAD": 1}
    untouched = {file.name for file in (output / "shards").iterdir()}

    shutil.copy(tmp_path / "all/01.png", tmp_path / "photos")
    memory.requests.clear()
    assert run(tmp_path / "rows.jsonl", retry_errors=True).errors == {"FILE_UNREADABLE": 2, "BAD": 1}
    sent = {text for _, inputs in memory.requests for text in inputs["text"]}
    images = {data for _, inputs in memory.requests for data in inputs.get("image", [])} - {b""}
    assert (sent - {b""}, images) == ({b"bad"}, {(tmp_path / "all/01.png").read_bytes()})
    assert {row["id"] for row in read_folder(output / "errors")} == {"02.png", "24.png", "rows.jsonl:26"}
    assert untouched < {file.name for file in (output / "shards").iterdir()}

    shutil.copytree(tmp_path / "all", tmp_path / "photos", dirs_exist_ok=True)
    assert run(tmp_path / "rows.jsonl", retry_errors=True).errors == {"BAD": 1}
    report = verify(output)
    assert (report.num_rows, report.num_embedded) == (26, 25)
    assert sorted(row["id"] for row in read_folder(output / "shards")) == names


def test_an_image_may_be_repaired(run: Run, tmp_path: Path, output: Path) -> None:
    photos = make_images(tmp_path / "photos", ["a.png", "b.png"])
    (photos / "b.png").write_bytes(b"")
    assert run(photos).errors == {"IMAGE_EMPTY": 1}
    (photos / "b.png").write_bytes(PNG)
    with pytest.raises(InvalidInputError, match=r"'b\.png' has changed"):
        run(photos)
    assert run(photos, retry_errors=True).num_embedded == 2
    assert not list((output / "errors").iterdir())


def test_errors_of_an_unfinished_run(run: Run, texts: Path, output: Path) -> None:
    run(texts)
    lines = (output / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (output / "manifest.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(InvalidInputError, match=r"only 3 of 4 shards of .* Finish the run without retry_errors first"):
        run(texts, retry_errors=True)


def make_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for seed, name in enumerate(names):
        (folder / name).write_bytes(encode(image(64, 64, seed=seed)))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "shard_size is 0"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'. Pass one of 'float32', 'float16'"),
        ({"engine": "spark"}, "engine is 'spark'. Pass one of 'local', 'ray'"),
        ({"instruction": 5}, "instruction is 5"),
        ({"dimensions": 1000}, "dimensions is 1000; this server takes 4 to 8"),
        ({"max_pixels": 1}, "max_pixels is 1"),
        ({"truncate": "yes"}, "truncate is 'yes'"),
    ],
)
def test_wrong_arguments(run: Run, texts: Path, output: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run(texts, **options)
    assert not output.exists()


def test_a_missing_library_is_told_before_anything_is_sent(
    run: Run, texts: Path, output: Path, memory: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, extra, options in (
        ("pyarrow", "bulk", {}),
        ("ray.data", "ray", {"engine": "ray"}),
        ("tqdm", "bulk", {"progress": True}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=rf"{module} cannot .*pip install 'vlembed\[{extra}\]'"):
                run(texts, **options)
    assert not memory.requests


def test_wrong_inputs(run: Run, tmp_path: Path, texts: Path) -> None:
    (tmp_path / "rows.xlsx").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/a.png").write_bytes(PNG)
    shutil.copy(texts, tmp_path / "mixed")
    (tmp_path / "rows.csv").write_text("caption\nfine\n")
    for source, message in (
        (tmp_path / "gone", "gone' does not exist"),
        ([], r"input is \[\]"),
        ([texts, texts], "each once"),
        ([tmp_path / "mixed", tmp_path / "mixed/a.png"], "a.png' is inside the input .*mixed'. Pass one of the two"),
        (tmp_path / "rows.xlsx", r"rows.xlsx' is none of \.jsonl, \.ndjson"),
        (tmp_path / "empty", "the input has no rows"),
        (tmp_path / "mixed", "has images and tables .*Pass those that are meant"),
        (tmp_path / "rows.csv", r"has the columns \['caption'\], but no text or image"),
        (tmp_path, "is inside the input"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            run(source)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "twice.parquet")
    (tmp_path / "twice.csv").write_text("text,n,n\n")
    for name, twice in (("twice.parquet", "text"), ("twice.csv", "n")):
        with pytest.raises(InvalidInputError, match=rf"{name}' has several columns \['{twice}'\]"):
            run(tmp_path / name)
    with pytest.raises(InvalidInputError, match=r"has the columns \['caption'\], but no uid\. Name the columns"):
        run(tmp_path / "rows.csv", columns=Columns(id="uid", text="caption"))
    with pytest.raises(InvalidInputError, match="Give id, text, image and instruction a name each"):
        Columns(id="text")


def test_a_folder_of_somebody_else_is_left_alone(run: Run, texts: Path, output: Path) -> None:
    output.mkdir()
    (output / "thesis.tex").touch()
    with pytest.raises(InvalidInputError, match="has files of others"):
        run(texts)
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


def test_one_run_at_a_time(run: Run, texts: Path, output: Path, memory: MemoryTransport) -> None:
    seen: list[OutputError] = []

    def run_again() -> None:
        memory.before_answer = lambda: None
        with pytest.raises(OutputError, match="in use by another run") as caught:
            run(texts)
        seen.append(caught.value)

    memory.before_answer = run_again
    assert run(texts).num_embedded == 30
    assert len(seen) == 1


def test_vectors_are_those_of_embed(run: Run, texts: Path, output: Path) -> None:
    run(texts, max_pixels=5000)
    rows = read_folder(output / "shards")
    np.testing.assert_array_equal(
        np.array([row["embedding"] for row in rows]),
        np.array([vector(f"text {row['position']}".encode()) for row in rows]),
    )


def test_a_bar_of_rows(run: Run, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(texts, progress=True)
    assert "35/35" in capsys.readouterr().err
