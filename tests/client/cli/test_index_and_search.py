"""Indexes on the command line: what is kept of an item, what is found, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from tests.client.cli.conftest import Run
from tests.client.conftest import INFO
from tests.samples import encode, image
from vlembed.cli._conditions import parse_conditions
from vlembed.cli._outputs import Output
from vlembed.cli._places import MILVUS

pytest.importorskip("faiss")

PNG = encode(image(32, 32))
NOTES = [
    {"text": "ein roter Apfel", "language": "de", "year": 2020},
    {"text": "a red apple", "language": "en", "year": 2021, "id": "apple"},
    {"text": "une pomme", "image": "a.png", "language": "fr", "year": 2022},
]


@pytest.fixture
def notes(run: Run) -> Run:
    """Return `run` with an index of NOTES in notes.index."""
    Path("a.png").write_bytes(PNG)
    lines = "\n".join(map(json.dumps, NOTES))
    result = run("index", "create", "notes.index", "--input-format", "jsonl", stdin=lines)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "note: 3 rows added or replaced, notes.index has 3\n"
    return run


def matches(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    (told,) = json.loads(result.stdout)["results"]
    return told["matches"]


def refused(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_what_is_kept_of_an_item(notes: Run) -> None:
    found = {match["id"]: match["metadata"] for match in matches(notes("search", "notes.index", "a red apple"))}
    assert found == {
        "ein roter Apfel": NOTES[0],
        "apple": {"text": "a red apple", "language": "en", "year": 2021},
        "a.png": NOTES[2],
    }


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["language=de"], {"ein roter Apfel"}),
        (["year>=2021", "year<2022"], {"apple"}),
        (["year!=2021", 'language=["fr", "en"]'], {"a.png"}),
        (['language="de"'], {"ein roter Apfel"}),
        (["year=3000"], set()),
        (['year="2020"'], set()),
        (["year==2021"], {"apple"}),
        (['language==["fr", "en"]'], {"apple", "a.png"}),
    ],
)
def test_conditions_hold(notes: Run, conditions: list[str], ids: set[str]) -> None:
    args = [part for condition in conditions for part in ("--where", condition)]
    assert {match["id"] for match in matches(notes("search", "notes.index", "apple", *args))} == ids


def test_conditions_are_parsed() -> None:
    assert parse_conditions(["a=b=c", "n<=3", "n>1", "t=true", "s= x y "]) == {
        "a": {"==": "b=c"},
        "n": {"<=": 3, ">": 1},
        "t": {"==": True},
        "s": {"==": "x y"},
    }
    assert parse_conditions(['s="=x"', "t=="]) == {"s": {"==": "=x"}, "t": {"==": ""}}
    for wrong in (
        ["nothing"],
        ["=a"],
        ["a=1", "a=2"],
        ["a=1", "a==2"],
        ["a=~x"],
        ["a===x"],
        ["a=<1"],
        ["a=" + "[" * 99999],
    ):
        with pytest.raises(click.UsageError, match="--where"):
            parse_conditions(wrong)


def test_forms_of_a_search(notes: Run) -> None:
    args = ["search", "notes.index", "a red apple", "une pomme", "-k", "2"]
    told = json.loads(notes(*args).stdout)["results"]
    assert [result["query"]["text"] for result in told] == ["a red apple", "une pomme"]
    assert [len(result["matches"]) for result in told] == [2, 2]
    assert [json.loads(line) for line in notes(*args, "--format", "jsonl").stdout.splitlines()] == told
    table = notes(*args, "--format", "table").stdout.splitlines()
    assert len(table) == 5
    assert "language=" in table[1]


def test_a_query_has_the_instruction_of_the_index(run: Run, memory: Any) -> None:
    run("index", "create", "x.index", "a", "--query-instruction", "Find fruit.", "--dimensions", "4")
    memory.requests.clear()
    assert matches(run("search", "x.index", "a"))
    ((_, inputs),) = memory.requests
    assert inputs["instruction"].tolist() == [b"Find fruit."]
    assert inputs["dimensions"].tolist() == [4]


def test_an_index_of_another_model_is_refused(notes: Run, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INFO, "fingerprint", "another")
    memory.requests.clear()
    for args in (["search", "notes.index", "a"], ["index", "add", "notes.index", "a"]):
        assert "'another'" in refused(notes(*args))
    assert not memory.requests


def test_add_refuses_or_replaces(notes: Run) -> None:
    assert "--replace" in refused(notes("index", "add", "notes.index", "--text", "ein roter Apfel", "new"))
    assert json.loads(notes("index", "info", "notes.index").stdout)["rows"] == 3
    assert notes("index", "add", "notes.index", "ein roter Apfel", "new", "--replace").exit_code == 0
    assert json.loads(notes("index", "info", "notes.index").stdout)["rows"] == 4
    found = {match["id"]: match["metadata"] for match in matches(notes("search", "notes.index", "x"))}
    assert found["ein roter Apfel"] == {"text": "ein roter Apfel"}


def test_what_another_program_adds_meanwhile_is_kept(notes: Run, memory: Any) -> None:
    def add_one() -> None:
        memory.before_answer = lambda: None
        assert notes("index", "add", "notes.index", "theirs").exit_code == 0

    memory.before_answer = add_one
    result = notes("index", "add", "notes.index", "ours")
    assert result.exit_code == 1
    assert "'notes.index' was changed by another program meanwhile" in result.stderr
    assert "theirs" in {match["id"] for match in matches(notes("search", "notes.index", "theirs"))}


def test_bad_items_are_left_out_or_refuse_all(run: Run) -> None:
    assert "argument 'bad'" in refused(run("index", "create", "x.index", "fine", "bad"))
    assert not Path("x.index").exists()
    result = run("index", "create", "x.index", "fine", "bad", "--keep-going")
    assert result.exit_code == 3
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "note"]
    assert [match["id"] for match in matches(run("search", "x.index", "fine"))] == ["fine"]


def test_long_and_broken_texts_get_ids(run: Run) -> None:
    long = "word " * 100
    assert run("index", "create", "x.index", long, long + "end", "two\nlines", "猫" * 400).exit_code == 0
    found = {match["metadata"]["text"]: match["id"] for match in matches(run("search", "x.index", "a"))}
    assert len(set(found.values())) == 4
    assert found["two\nlines"] == "two lines"
    assert max(len(own.encode()) for own in found.values()) <= 1024  # Milvus's bound
    assert run("index", "add", "x.index", long, "--replace").exit_code == 0
    assert json.loads(run("index", "info", "x.index").stdout)["rows"] == 4


def test_kinds_and_their_options(run: Run) -> None:
    assert run("index", "create", "x.index", "a", "--kind", "hnsw", "--option", "m=8").exit_code == 0
    told = json.loads(run("index", "info", "x.index").stdout)
    assert (told["kind"], told["options"]["m"], told["dimensions"]) == ("hnsw", 8, 8)
    assert "m                8" in run("index", "info", "x.index", "--format", "table").stdout


def test_a_report_beside_the_result(notes: Run) -> None:
    result = notes("search", "notes.index", "a red apple", "a.png", "--report", "found.html", "--where", "year>0")
    assert result.exit_code == 0
    assert not result.stderr
    assert len(json.loads(result.stdout)["results"]) == 2
    page = Path("found.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/webp;base64,') == 3  # the query's, and that of one row for both queries
    assert "<dd>year&gt;0</dd>" in page
    Path("a.png").rename("b.png")
    result = notes("search", "notes.index", "a red apple", "--report", "found.html")
    assert result.stderr == "note: no picture at 1 paths in '.', as 'a.png'\n"
    assert "no picture at a.png" in Path("found.html").read_text(encoding="utf-8")
    Path("moved").mkdir()
    Path("b.png").rename("moved/a.png")
    assert not notes("search", "notes.index", "apple", "--report", "found.html", "--pictures", "moved").stderr


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}],
            "line 2 of standard input: the id 'x' is that of line 1",
        ),
        ([{"text": "b"}, {"text": ""}], "line 2 of standard input: the id is ''"),
        ([{"text": "b", "id": "\x00"}], "line 1 of standard input: the id is"),
        ([{"text": "a red apple", "id": "apple"}], "line 1 of standard input: the id 'apple' is in the index already"),
    ],
)
def test_ids_are_checked_before_anything_is_embedded(notes: Run, memory: Any, lines: list[Any], told: str) -> None:
    memory.requests.clear()
    stdin = "\n".join(map(json.dumps, lines))
    assert told in refused(notes("index", "add", "notes.index", "--input-format", "jsonl", stdin=stdin))
    if "already" not in told:
        for args in (["add", "notes.index", "--replace"], ["create", "x.index"]):
            assert told in refused(notes("index", *args, "--input-format", "jsonl", stdin=stdin))
    assert not memory.requests


def test_nothing_is_made_of_bad_items_alone(run: Run) -> None:
    result = run("index", "create", "x.index", "bad", "--keep-going")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: no item can be embedded. Nothing was written."
    assert not Path("x.index").exists()


def test_rows_are_deleted_by_their_ids(notes: Run, memory: Any) -> None:
    memory.requests.clear()
    result = notes("index", "delete", "notes.index", "apple", "none")
    assert (result.exit_code, result.stderr) == (0, "note: 1 of 2 ids were there, notes.index has 2 rows\n")
    result = notes("index", "delete", "notes.index", stdin="a.png\n")
    assert (result.exit_code, result.stderr) == (0, "note: 1 of 1 ids were there, notes.index has 1 rows\n")
    assert not memory.requests
    refused(notes("index", "delete", "none.index", "a"))


def test_values_of_metadata_are_told_as_json(run: Run) -> None:
    line = json.dumps({"text": "a", "sold": True, "note": None, "tags": ["x"]})
    assert run("index", "create", "x.index", "--input-format", "jsonl", stdin=line).exit_code == 0
    table = run("search", "x.index", "a", "--format", "table", "--report", "x.html").stdout
    assert 'sold=true, note=null, tags=["x"]' in table
    assert "<dd>null</dd>" in Path("x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["index", "info"], ["search"], ["index", "add"], ["index", "delete"]])
def test_a_file_of_milvus_that_is_not_there_is_not_made(run: Run, command: list[str]) -> None:
    items = [] if command[-1] == "info" else ["a"]
    assert "there is no index" in refused(run(*command, "milvus+file:none.db/x", *items))
    assert "ends in .db" in refused(run(*command, "milvus+file:none/x", *items))
    assert "milvus+http://" in refused(run(*command, "http://host:19530/x", *items))
    assert not list(Path().iterdir())


def test_a_failed_create_leaves_no_collection(run: Run) -> None:
    pytest.importorskip("milvus_lite")
    place = "milvus+file:x.db/x"
    refused(run("index", "create", place, "bad"))
    refused(run("index", "create", place, "a", "--kind", "ivfpq"))
    assert not Path("x.db").exists()
    assert run("index", "create", place, "a", "--dimensions", "4", "--kind", "flat").exit_code == 0
    assert "has 1 rows" in refused(run("index", "create", place, "b"))


def test_files_that_a_command_writes_are_others_than_it_reads(notes: Run) -> None:
    before = Path("notes.index").read_bytes()
    Path("link.html").symlink_to("notes.index")
    search = ["search", "notes.index", "apple"]
    assert "INDEX and --report are both 'notes.index'" in refused(notes(*search, "--report", "./notes.index"))
    assert "INDEX and --report are both 'link.html'" in refused(notes(*search, "--report", "link.html"))
    assert "INDEX and --output" in refused(notes(*search, "-o", "notes.index", "--format", "json"))
    assert "--output and --report" in refused(notes(*search, "-o", "x.json", "--report", "x.json"))
    assert "INDEX and --output" in refused(
        notes("index", "info", "notes.index", "-o", "notes.index", "--format", "json")
    )
    assert Path("notes.index").read_bytes() == before


def test_the_report_is_there_when_the_reader_of_the_result_leaves(notes: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: Output, data: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Output, "write", leave)
    assert notes("search", "notes.index", "apple", "--report", "found.html").exit_code == 141
    assert Path("found.html").stat().st_size


@pytest.mark.parametrize(
    "args",
    [
        ["search", "none.index", "a"],
        ["search", "broken.index", "a"],
        ["search", "notes.index", "a", "-k", "0"],
        ["search", "notes.index", "a", "--where", "language"],
        ["search", "notes.index", "a", "--report", "no/folder.html"],
        ["search", "notes.index", "a", "--report", "."],
        ["search", "notes.index", "bad"],
        ["search", "milvus+nowhere", "a"],
        ["index", "create", "notes.index", "a"],
        ["index", "create", "no/folder.index", "a"],
        ["index", "create", "x.index", "a", "a"],
        ["index", "create", "x.index", "a", "--kind", "tree"],
        ["index", "create", "x.index", "a", "--option", "m=x"],
        ["index", "create", "x.index", "a", "--option", "depth=3"],
        ["index", "create", "x.index", "a", "--dimensions", "3"],
        ["index", "add", "none.index", "a"],
        ["index", "info", "none.index"],
        ["index", "frobnicate"],
    ],
)
def test_wrong_usage(notes: Run, args: list[str]) -> None:
    Path("broken.index").write_bytes(Path("notes.index").read_bytes()[:-100])
    refused(notes(*args))
    assert not Path("x.index").exists()


@pytest.mark.parametrize(
    ("place", "uri", "collection"),
    [
        ("milvus+http://host:19530/photos", "http://host:19530", "photos"),
        ("milvus+https://in01.example.com/photos", "https://in01.example.com", "photos"),
        ("milvus+file:photos.db/photos", "photos.db", "photos"),
        ("milvus+file:/data/photos.db/photos", "/data/photos.db", "photos"),
        ("milvus+file:./a.db/b.db/photos", "./a.db/b.db", "photos"),
    ],
)
def test_places_in_milvus(place: str, uri: str, collection: str) -> None:
    parts = MILVUS.fullmatch(place)
    assert parts
    assert parts.groupdict() == {"uri": uri, "collection": collection}
