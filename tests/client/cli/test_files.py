"""Which files the commands read and write: side files, links, URLs, and tables that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.client.cli.conftest import Run
from tests.samples import encode, image

PNG = encode(image(32, 32))


def write(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(PNG)


def error_of(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line)


def test_side_files_are_left_out_and_counted(run: Run) -> None:
    write("a.png", "._a.png", "sub/b.png", "sub/.hidden.png", ".thumbnails/a.png", "@eaDir/a.png/SYNO.png")
    Path("loop").symlink_to(".")
    Path("again.png").symlink_to("a.png")
    result = run("embed", "**/*.png")
    assert [item["id"] for item in json.loads(result.stdout)["items"]] == ["a.png", "sub/b.png"]
    left_out = "4 side files, 1 links to folders, 1 links to files that are there"
    assert result.stderr == f"note: {left_out} left out of '**/*.png'\n"
    for explicit in ("._a.png", "again.png", ".thumbnails/*.png", ".thumbnails/a.png"):
        result = run("embed", explicit)
        assert (result.exit_code, result.stderr) == (0, "")
        assert len(json.loads(result.stdout)["items"]) == 1


def test_a_pattern_that_matches_side_files_alone(run: Run) -> None:
    write("._a.png", "b/.hidden.png")
    assert "but 2 side files. Give the path" in error_of(run("embed", "**/*.png"))


@pytest.mark.parametrize("url", ["s3://bucket/out", "gs://b", "hdfs:///out", "file:///out"])
@pytest.mark.parametrize(
    "args",
    [
        ["bulk", "rows.jsonl", "{}"],
        ["bulk", "{}/rows.jsonl", "out"],
        ["bulk", "rows.jsonl", "{}/rows.csv", "out"],
        ["embed", "a", "-o", "{}.npy"],
        ["embed", "a", "-o", "{}", "--format", "jsonl"],
        ["embed", "--image", "{}/*.png"],
        ["embed", "{}/my photo.png"],
        ["similarity", "{}.npy"],
        ["similarity", "a", "b", "-o", "{}.json"],
        ["index", "create", "{}", "a"],
        ["index", "create", "{} my.index", "a"],
        ["index", "create", "milvus+file:{}/x.db/items", "a"],
        ["index", "load-from-bulk", "x.index", "{}"],
        ["index", "add", "{}", "a"],
        ["index", "delete", "{}", "a"],
        ["index", "info", "{}"],
        ["search", "{}", "a"],
        ["search", "x.index", "a", "--report", "{}.html"],
        ["search", "x.index", "a", "--pictures", "{}"],
        ["info", "--ca-file", "{}"],
        ["info", "-o", "{}.json"],
    ],
    ids=" ".join,
)
def test_a_url_is_no_path(run: Run, memory: Any, args: list[str], url: str) -> None:
    Path("rows.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    error = error_of(run(*(part.format(url) for part in args)))
    assert "is a URL" in error or f"{url}" in error
    assert [path.name for path in Path().iterdir()] == ["rows.jsonl"]
    assert not memory.requests


def test_a_url_is_no_image(run: Run, memory: Any) -> None:
    line = json.dumps({"image": "s3://bucket/a.png"})
    error = error_of(run("embed", "--input-format", "jsonl", stdin=line))
    assert "line 1 of standard input: the image 's3://bucket/a.png' is a URL, and nothing is fetched" in error
    Path("rows.jsonl").write_text(line, encoding="utf-8")
    result = run("bulk", "rows.jsonl", "out")
    assert result.exit_code == 3
    assert "is a URL, and nothing is fetched" in result.stderr
    assert not memory.requests


def test_an_index_is_still_in_milvus(run: Run) -> None:
    """The one place that is spelled as a URL and means one."""
    pytest.importorskip("milvus_lite")
    assert run("index", "create", "milvus+file:m.db/items", "a", "b").exit_code == 0
    assert json.loads(run("index", "info", "milvus+file:m.db/items").stdout)["rows"] == 2


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.csv", "id,text\n1,a\n2,\"b\n3,c\n", "line 3 opens a quote that is never closed"),
        ("rows.csv", "id;text\n1;a\n", "its header has a semicolon"),
        ("rows.jsonl", '[{"text": "a"}]', "it is a JSON array"),
        ("rows.json", '[{"text": "a"}]', "is none of .jsonl"),
        ("rows.jsonl.gz", "", "is none of .jsonl"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_what_it_seems(run: Run, name: str, content: str, told: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    assert told in error_of(run("bulk", name, "out"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "a", "text": "b"}', "line 1 of standard input is no JSON (an object has 'text' twice)"),
        ('{"text": "a", "n": Infinity}', "line 1 of standard input is no JSON (Infinity is no JSON"),
        ('[{"text": "a"}]', "line 1 of standard input is no object"),
    ],
)
def test_a_line_that_python_would_read_in_its_own_way(run: Run, line: str, told: str) -> None:
    assert told in error_of(run("embed", "--input-format", "jsonl", stdin=line))


def test_utf16_without_a_mark_is_no_text(run: Run, memory: Any) -> None:
    assert "line 1 of standard input has a NUL byte" in error_of(run("embed", stdin="a cat\n".encode("utf-16-le")))
    assert not memory.requests


def test_what_was_not_checked_is_not_told_as_none(run: Run) -> None:
    rows = [{"id": own, "text": own} for own in ("a", "b", "a")]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("fine.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    assert json.loads(run("bulk", "rows.jsonl", "out").stdout)["duplicate_ids"] is None
    assert json.loads(run("bulk", "rows.jsonl", "out", "--verify").stdout)["duplicate_ids"] == {"a": 2}
    assert json.loads(run("bulk", "fine.jsonl", "fine", "--verify").stdout)["duplicate_ids"] == {}
    assert json.loads(run("bulk", "fine.jsonl", "fine", "--verify").stdout)["ignored"] == {}
    table = run("bulk", "fine.jsonl", "fine", "--format", "table").stdout
    assert "duplicate_ids  not checked" in table
    assert "ignored        none" in table
    assert "duplicate_ids  none" in run("bulk", "fine.jsonl", "fine", "--format", "table", "--verify").stdout
