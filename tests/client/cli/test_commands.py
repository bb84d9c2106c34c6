"""What the commands make of their arguments and of standard input, and how they fail."""

from __future__ import annotations

import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click.testing
import numpy as np
import pytest
from click.shell_completion import ShellComplete

from tests.client.cli.conftest import ROOT, Run
from tests.samples import encode, image
from vlembed._items import IMAGE_PATH
from vlembed.cli import vlembed
from vlembed.cli._root import CURES

PNG = encode(image(32, 32))


def items(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    assert not result.stderr
    return json.loads(result.stdout)["items"]


def refused(result: Any, status: int = 2) -> str:
    assert result.exit_code == status
    assert not result.stdout
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    return result.stderr


def test_arguments_are_texts_and_images(run: Run, memory: Any) -> None:
    for name in ("b.png", "a.png", "with space.JPG", "[1].png"):
        Path(name).write_bytes(PNG)
    Path("blob").write_bytes(PNG)
    told = items(run("embed", "a cat", "[ab].png", "with space.JPG", "[1].png", "--image", "blo*", "--text", "and/or"))
    assert [item["id"] for item in told] == ["a cat", "a.png", "b.png", "with space.JPG", "[1].png", "and/or", "blob"]
    assert [item.get("text") for item in told] == ["a cat", None, None, None, None, "and/or", None]
    images = [value for _, inputs in memory.requests for value in inputs.get("image", []) if value]
    assert images == [PNG] * 5


def test_folders_are_crossed_by_two_stars(run: Run) -> None:
    Path("x/y").mkdir(parents=True)
    for path in ("x/1.png", "x/y/2.png"):
        Path(path).write_bytes(PNG)
    assert [item["id"] for item in items(run("embed", "**/*.png"))] == ["x/1.png", "x/y/2.png"]


@pytest.mark.parametrize("argument", ["photo.png", "*.jpg", "a b.jpeg", "x.*", "folder/", "folder/file", "*.{png,jpg}"])
def test_what_may_be_a_file_is_no_text(run: Run, memory: Any, argument: str) -> None:
    Path("folder").mkdir()
    Path("folder/file").touch()
    error = refused(run("embed", argument))
    assert repr(argument) in error
    assert "--text" in error
    assert not memory.requests


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"])
def test_every_suffix_of_the_client_is_an_image(run: Run, suffix: str) -> None:
    assert IMAGE_PATH.fullmatch(f"photo.{suffix}")
    Path(f"a photo.{suffix.upper()}").write_bytes(PNG)
    assert "image" in items(run("embed", f"a photo.{suffix.upper()}"))[0]


def test_a_name_that_is_not_utf8(run: Run) -> None:
    Path(os.fsdecode(b"\xff.png")).write_bytes(PNG)
    assert r"'\udcff.png' is not UTF-8" in refused(run("embed", "*.png"))


@pytest.mark.parametrize("args", [[], ["-"]])
def test_lines_of_standard_input(run: Run, args: list[str]) -> None:
    told = items(run("embed", *args, stdin="\ufeffa cat\r\nein Hund\n猫"))
    assert [item["text"] for item in told] == ["a cat", "ein Hund", "猫"]


def test_standard_input_has_its_place(run: Run) -> None:
    assert [item["text"] for item in items(run("embed", "1", "-", "4", stdin="2\n3\n"))] == ["1", "2", "3", "4"]


def test_objects_of_standard_input(run: Run, memory: Any) -> None:
    Path("a.png").write_bytes(PNG)
    lines = [
        {"text": "x", "image": "a.png", "id": 7, "instruction": "Find it."},
        {"image": "data:image/png;base64,AAAA"},
        {"text": ""},
    ]
    told = items(run("embed", "--input-format", "jsonl", stdin="\n".join(map(json.dumps, lines))))
    assert [item["id"] for item in told] == ["7", "data:image/png;base64,AAAA", ""]
    sent = [
        (t, i) for _, inputs in memory.requests for t, i in zip(inputs["text"], inputs.get("image", [b""]), strict=True)
    ]
    assert sorted(sent) == [(b"", b""), (b"", b"data:image/png;base64,AAAA"), (b"x", PNG)]
    told = [text for _, inputs in memory.requests for text in inputs.get("instruction", []) if text]
    assert told == [b"Find it."]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\n", "line 2 of standard input is empty"),
        (b"\xff\n", "line 2 of standard input is not UTF-8"),
        (b"{", "line 2 of standard input is no JSON"),
        (b"[]", "line 2 of standard input is no object"),
        (b'{"txt": "a"}', "line 2 of standard input is no object with a text or an image"),
        (b'{"text": "a", "id": 1.5}', "line 2 of standard input: id is 1.5"),
        (b'{"text": "a", "id": true}', "line 2 of standard input: id is true"),
        (b'{"image": 3}', "line 2 of standard input: image is 3"),
        (b'{"text": "a", "lang": "de"}', "line 2 of standard input has 'lang'"),
        (b'{"text": 3}', "line 2 of standard input: text is 3"),
        (b'{"image": "no.png"}', "line 2 of standard input: image 'no.png' cannot be read"),
        (b'{"text": "no.png"}', "the text 'no.png' is the path of an image file, whose content may be meant"),
        (b'{"text": "a", "id": "\\ud800"}', "line 2 of standard input is no JSON"),
        (b'{"text": "a", "score": NaN}', "line 2 of standard input is no JSON"),
        (b'{"text": "bad"}', "line 2 of standard input: item 1 is bad"),
    ],
)
def test_a_bad_line_is_named(run: Run, line: bytes, told: str) -> None:
    assert told in refused(run("embed", "--input-format", "jsonl", stdin=b'{"text": "fine"}\n' + line))


def test_every_bad_item_is_a_line(run: Run) -> None:
    lines = refused(run("embed", "bad", "fine", "bad", "--text", "bad")).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["argument 'bad'", "argument 'bad'", "--text 'bad'"]
    lines = refused(run("embed", stdin="bad\n" * 30)).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "error: and 10 more"


def test_keeping_going_leaves_bad_items_out(run: Run) -> None:
    result = run("embed", "bad", "fine", "bad", "well", "--keep-going")
    assert result.exit_code == 3
    assert [item["id"] for item in json.loads(result.stdout)["items"]] == ["fine", "well"]
    assert result.stderr.splitlines() == [
        "error: argument 'bad': item 0 is bad",
        "error: argument 'bad': item 2 is bad",
    ]
    assert "npy" in refused(run("embed", "fine", "--keep-going", "-o", "x.npy"))
    result = run("embed", "--keep-going", "--format", "jsonl", stdin="bad\n" * 30)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (3, "", 30)


def test_a_text_like_a_reference_can_be_insisted_on(run: Run) -> None:
    for text in ("https://example.com", "https://example.com/a.png", "data:image/png;base64,AAAA"):
        assert "give --allow-reference-text" in refused(run("embed", text))
        assert items(run("embed", text, "--allow-reference-text"))[0]["text"] == text
    for text in ("https://example.com", "photo.png", "*.jpg", "data:image/png;base64,AAAA"):
        assert items(run("embed", "--text", text, "fine"))[1]["text"] == text
    told = items(run("embed", "--allow-reference-text", stdin="photo.png\n"))
    assert told[0]["text"] == "photo.png"


@pytest.mark.parametrize("name", ["notes.txt", "notes", "my photos/a.txt", "v.parquet", "my photos"])
def test_the_name_of_a_file_is_no_text(run: Run, memory: Any, name: str) -> None:
    Path("my photos").mkdir()
    for file in ("notes.txt", "notes", "my photos/a.txt", "v.parquet"):
        Path(file).touch()
    for args in (["embed", name], ["similarity", name, "b"], ["similarity", "b", "--with", name]):
        error = refused(run(*args))
        assert f"{name!r} is there as a file or a folder" in error
        assert ("--text" in error) == (args[0] == "embed")
    assert not memory.requests
    assert items(run("embed", "--text", name))[0]["text"] == name


@pytest.mark.parametrize(
    "args",
    [
        ["--no-such-option"],
        ["no-such-command"],
        ["embed", "a", "--format", "xml"],
        ["embed", "a", "-o", "no/folder.npy"],
        ["embed", "a", "-o", "."],
        ["embed", "a", "-o", "x.vectors"],
        ["embed", "a", "--timeout", "0"],
        ["embed", "a", "--dimensions", "3"],
        ["embed", "--input-format", "xml"],
        ["embed"],
        ["similarity"],
        ["similarity", "a", "b", "--pairwise"],
        ["similarity", "a", "--with", "b", "--with", "c", "--pairwise"],
        ["similarity", "a", "x.npy"],
        ["similarity", "x.npy"],
        ["similarity", "a", "-"],
        ["similarity", "-", "--with", "-"],
        ["similarity", "a", "--metric", "hamming"],
    ],
)
def test_wrong_usage(run: Run, args: list[str]) -> None:
    assert len(refused(run(*args)).splitlines()) == 1


def test_bare_commands_show_help(run: Run) -> None:
    assert run().stdout == run("--help").stdout == run("-h").stdout
    assert run("index").stdout == run("index", "--help").stdout
    assert run("--version").stdout.startswith("vlembed 0.")


def test_forms(run: Run, memory: Any) -> None:
    rows = [json.loads(line) for line in run("embed", "a", "b", "--format", "jsonl").stdout.splitlines()]
    theirs = np.array([row["embedding"] for row in rows], np.float32)
    npy = np.load(io.BytesIO(run("embed", "a", "b", "--format", "npy").stdout_bytes))
    np.testing.assert_array_equal(npy, theirs)
    assert run("embed", "a", "b", "-o", "x.npy").stdout == ""
    np.testing.assert_array_equal(np.load("x.npy"), theirs)
    assert run("embed", "a", "b", "-o", "x.json").stdout == ""
    assert json.loads(Path("x.json").read_text(encoding="utf-8"))["items"] == rows
    table = run("embed", "a\n\x1b[31mb", "猫" * 60, "--format", "table").stdout
    assert "\x1b" not in table
    assert [line.split("  ")[0] for line in table.splitlines()] == ["item", "a [31mb", "猫" * 23 + "…"]


def test_parquet(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    Path("a.png").write_bytes(PNG)
    assert run("embed", "a cat", "a.png", "-o", "x.parquet").exit_code == 0
    table = parquet.read_table("x.parquet")
    assert table.column("id").to_pylist() == ["a cat", "a.png"]
    assert table.column("text").to_pylist() == ["a cat", None]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[8]"
    assert run("embed", "a cat", "a.png", "-o", "x.npy").exit_code == 0
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), np.load("x.npy"))


def test_nothing_is_written_when_it_fails(run: Run) -> None:
    Path("x.npy").write_bytes(b"precious")
    refused(run("embed", "bad", "-o", "x.npy"))
    assert Path("x.npy").read_bytes() == b"precious"


def test_a_file_is_replaced_as_a_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.npy").write_bytes(b"precious")
    Path("x.npy").chmod(0o640)
    Path("link.npy").symlink_to("x.npy")
    with monkeypatch.context() as patch:
        patch.setattr("vlembed._files.os.fsync", failing := Mock(side_effect=OSError(28, "No space left on device")))
        assert "'link.npy' cannot be written (No space left" in refused(run("embed", "a", "-o", "link.npy"), status=1)
    assert failing.called
    assert Path("x.npy").read_bytes() == b"precious"
    assert run("embed", "a", "-o", "link.npy").exit_code == 0
    assert Path("link.npy").is_symlink()
    assert np.load("x.npy").shape == (1, 8)
    assert Path("x.npy").stat().st_mode & 0o777 == 0o640
    assert {path.name for path in Path().iterdir()} == {"x.npy", "link.npy"}


def test_output_to_a_pipe_a_device_and_a_dash(run: Run) -> None:
    os.mkfifo("pipe.npy")
    with ThreadPoolExecutor() as pool:
        read = pool.submit(Path("pipe.npy").read_bytes)
        assert run("embed", "a", "-o", "pipe.npy").exit_code == 0
    assert np.load(io.BytesIO(read.result())).shape == (1, 8)
    result = run("embed", "a", "-o", "/dev/full", "--format", "npy")
    assert "'/dev/full' cannot be written (No space left on device)" in refused(result, status=1)
    assert np.load(io.BytesIO(run("embed", "a", "-o", "-", "--format", "npy").stdout_bytes)).shape == (1, 8)
    assert not Path("-").exists()


def test_similarity(run: Run) -> None:
    told = json.loads(run("similarity", "ab", "abcdefgh", "--metric", "euclidean").stdout)
    assert told["rows"] == told["columns"] == ["ab", "abcdefgh"]
    matrix = np.array(told["similarity"])
    np.testing.assert_array_equal(matrix, matrix.T)
    assert matrix[0, 0] == 0 > matrix[0, 1]
    told = json.loads(run("similarity", "ab", "-", "--with", "ab", "--with", "b", "--pairwise", stdin="b\n").stdout)
    np.testing.assert_allclose(told["similarity"], [1, 1], rtol=1e-6)
    table = run("similarity", "ab", "--with", "x", "--with", "y", "--format", "table").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["cosine", "x", "y"]


def test_similarity_of_files_asks_no_server(run: Run, memory: Any) -> None:
    np.save("a.npy", np.eye(3, dtype=np.float32))
    np.save("b.npy", np.ones((3, 3), np.float32))
    told = json.loads(run("similarity", "a.npy", "--with", "b.npy", "--metric", "dot", "--pairwise").stdout)
    assert told["rows"] == ["a.npy[0]", "a.npy[1]", "a.npy[2]"]
    assert told["similarity"] == [1, 1, 1]
    run("similarity", "a.npy", "-o", "matrix.npy", "--with", "b.npy")
    assert np.load("matrix.npy").shape == (3, 3)
    assert not memory.requests
    np.save("doubles.npy", np.array([[1 / 3]]))
    assert json.loads(run("similarity", "doubles.npy", "--metric", "dot").stdout)["similarity"] == [[(1 / 3) ** 2]]
    assert "same dimensions" in refused(run("similarity", "a.npy", "doubles.npy"))
    with Path("zip.npy").open("wb") as file:
        np.savez(file, np.eye(2))
    assert "vectors (n, d)" in refused(run("similarity", "zip.npy"))
    np.save("row.npy", np.ones(3))
    assert "vectors (n, d)" in refused(run("similarity", "row.npy"))


def test_similarity_names_rows_by_their_ids(run: Run) -> None:
    rows = [{"text": "a", "id": 7}, {"image": f"data:image/png;base64,{'A' * 400}"}, {"text": "b"}]
    lines = "\n".join(map(json.dumps, rows))
    told = json.loads(run("similarity", "-", "--input-format", "jsonl", stdin=lines).stdout)["rows"]
    assert told == ["7", "data:image/png;base64,AAAAAAAA…", "b"]


def test_a_header_that_is_wrong_is_not_told(run: Run) -> None:
    assert "secret" not in refused(run("info", "--header", "Authorization secret"))


def test_files_are_completed(run: Run) -> None:
    for words, incomplete in (
        (["search"], "x"),
        (["search", "x.index"], "a"),
        (["index", "add", "x.index"], "a"),
        (["embed", "--image"], "a"),
        (["search", "x.index", "--report"], "a"),
    ):
        (item,) = ShellComplete(vlembed, {}, "vlembed", "").get_completions(words, incomplete)
        assert item.type == "file"


def test_info(run: Run, memory: Any) -> None:
    told = json.loads(run("info").stdout)
    assert told["checkpoint"] == "memory"
    assert told["bounds"]["max_items"] == 4
    assert "fingerprint            0123456789abcdef" in run("info", "--format", "table").stdout.splitlines()


def test_headers(monkeypatch: pytest.MonkeyPatch, http_stub: Any) -> None:
    monkeypatch.setenv("VLEMBED_URL", http_stub.url)
    monkeypatch.setenv("VLEMBED_HEADERS", "Authorization: Bearer a:b\nX-Team: red blue")
    for options, team in ((), "red blue"), (("--header", "X-Team:green"), "green"):
        result = click.testing.CliRunner().invoke(vlembed, ["info", *options])
        refused(result, status=1)  # the stub is no vlembed server
        headers = http_stub.seen[-1][1]
        assert headers["X-Team"] == team
        assert headers.get("Authorization") == (None if options else "Bearer a:b")


@pytest.mark.parametrize("cure", CURES)
def test_the_cures_that_are_respelled_are_still_given(cure: str) -> None:
    files = [*(ROOT / "client/vlembed").glob("*.py"), *(ROOT / "client/vlembed/bulk").glob("*.py")]
    files += (ROOT / "model_repository/preprocess/1").glob("*.py")
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    assert re.search(cure, re.sub(r'"\n\s*f?"', "", sources))
