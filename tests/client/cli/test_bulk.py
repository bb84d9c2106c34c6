"""What `vlembed bulk` refuses before it embeds anything, and what it shares with Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.cli.conftest import Run
from tests.client.conftest import MemoryTransport
from vlembed.bulk import embed_files


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["rows.jsonl"], "INPUT"),
        (["none.jsonl", "out"], "none.jsonl"),
        (["rows.jsonl", "rows.jsonl"], "rows.jsonl"),
        (["rows.jsonl", "out", "--column", "title=name"], "--column is 'title=name'"),
        (["rows.jsonl", "out", "--column", "text"], "--column is 'text'"),
        (["rows.jsonl", "out", "--column", "text=a", "--column", "image=a"], "columns are"),
        (["rows.jsonl", "out", "--shard-size", "0"], "shard_size is 0"),
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


def test_python_goes_on_with_a_run_of_the_command(run: Run, memory: MemoryTransport) -> None:
    """Both have the same defaults, without which an output is refused."""
    Path("rows.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    assert run("bulk", "rows.jsonl", "out").exit_code == 0
    assert embed_files("rows.jsonl", "out", url="memory", client_options={"transport": memory}).num_embedded == 1
