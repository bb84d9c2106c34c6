"""What `vlembed bulk` refuses before it embeds anything, and what it shares with Python."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from tests.client.cli.conftest import Run
from tests.client.conftest import MemoryTransport
from tests.samples import encode, image
from vlembed.bulk import embed_files


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "INPUT and OUTPUT are needed"),
        (["rows.jsonl"], "only 'rows.jsonl' is given"),
        (["folder/*.png", "out"], "Leave the quotes off"),
        (["rows.jsonl", "out", "--workers", "2"], "Add --engine ray"),
        (["rows.jsonl", "out", "--workers", "0", "--engine", "ray"], "'--workers': 0"),
        (["rows.jsonl", "out", "--timeout", "0"], "'--timeout': 0"),
        (["none.jsonl", "out"], "none.jsonl"),
        (["rows.jsonl", "rows.jsonl"], "rows.jsonl"),
        (["rows.jsonl", "out", "--column", "title=name"], "--column is 'title=name'"),
        (["rows.jsonl", "out", "--column", "text"], "--column is 'text'"),
        (["rows.jsonl", "out", "--column", "text=a", "--column", "image=a"], "columns are"),
        (["rows.jsonl", "out", "--shard-size", "0"], "'--shard-size': 0"),
        (["rows.jsonl", "out", "--dtype", "int8"], "int8"),
        (["rows.jsonl", "out", "--dimensions", "3"], "dimensions is 3"),
        (["rows.txt", "out"], "rows.txt"),
        (["folder", "folder/out"], "inside the input"),
    ],
)
def test_wrong_usage(run: Run, args: list[str], told: str) -> None:
    Path("rows.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    Path("rows.txt").touch()
    Path("folder").mkdir()
    result = run("bulk", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_failed_rows_are_told_in_words_of_files(run: Run) -> None:
    texts = ["fine", "no.png", "https://example.com", *["bad"] * 9]
    rows = [*({"text": text} for text in texts), {"text": 3}]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run("bulk", "rows.jsonl", "out")
    assert result.exit_code == 3
    *told, note = result.stderr.splitlines()
    assert note == "note: 12 rows failed, out/errors has the reasons"
    assert len(told) == 5
    for number, line in enumerate(told, 2):
        assert line.startswith(f"error: rows.jsonl:{number}: ")
        assert not re.search(r"Path\(|\bpass\b", line)
    assert "column of images" in told[0]
    assert run("bulk", "rows.jsonl", "allowed", "--allow-reference-text").stderr.count("error: ") == 5
    assert json.loads(run("bulk", "rows.jsonl", "allowed", "--allow-reference-text").stdout)["num_embedded"] == 3


def test_a_report_shows_texts_and_pictures_of_bulk(run: Run) -> None:
    pytest.importorskip("faiss")
    Path("shop/photos").mkdir(parents=True)
    Path("shop/photos/a.png").write_bytes(encode(image(32, 32)))
    uri = f"data:image/png;base64,{base64.b64encode(encode(image(32, 32))).decode()}"
    rows = [{"sku": "1", "name": "ein Apfel", "photo": "photos/a.png", "price": 3}, {"sku": "2", "photo": uri}]
    Path("shop/rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = [part for column in ("id=sku", "text=name", "image=photo") for part in ("--column", column)]
    assert run("bulk", "shop/rows.jsonl", "shop/photos", "out", *columns).exit_code == 0
    assert run("index", "load-from-bulk", "x.index", "out").exit_code == 0
    result = run("search", "x.index", "apple", "--report", "found.html", "--pictures", "shop")
    assert not result.stderr
    matches = {match["id"]: match["metadata"] for match in json.loads(result.stdout)["results"][0]["matches"]}
    assert matches == {
        "1": {"text": "ein Apfel", "image": "photos/a.png", "price": 3},
        "2": {},
        "photos/a.png": {"image": "photos/a.png"},
    }
    page = Path("found.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2
    assert "ein Apfel" in page


def test_python_goes_on_with_a_run_of_the_command(run: Run, memory: MemoryTransport) -> None:
    """Both have the same defaults, without which an output is refused."""
    Path("rows.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    assert run("bulk", "rows.jsonl", "out").exit_code == 0
    assert embed_files("rows.jsonl", "out", url="memory", client_options={"transport": memory}).num_embedded == 1
