"""What a run wrote, read again, held against its checksums and damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.client.bulk.conftest import Run, read_folder
from tests.client.conftest import INFO
from tests.client.indexes import MakeIndex
from vlembed import Index, InvalidInputError, OutputError, VlembedError
from vlembed.bulk import load_into, read_blocks, verify
from vlembed.bulk._manifest import read_manifest


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_are_the_rows(run: Run, texts: Path, output: Path, dtype: str) -> None:
    run(texts, dtype=dtype)
    blocks = list(read_blocks(output, block_rows=4))
    assert max(len(block.ids) for block in blocks) == 4
    rows = read_folder(output / "shards")
    assert [own for block in blocks for own in block.ids] == [row["id"] for row in rows]
    assert [own for block in blocks for own in block.metadata] == [json.loads(row["metadata"]) for row in rows]
    embeddings = np.concatenate([block.embeddings for block in blocks])
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, [row["embedding"] for row in rows])
    for name in ("text_tokens", "image_tokens"):
        tokens = np.concatenate([getattr(block.embeddings, name) for block in blocks])
        assert tokens.tolist() == [row[name] for row in rows]
    assert {block.embeddings.fingerprint for block in blocks} == {INFO["fingerprint"]}


def test_ids_that_occur_twice_are_told(run: Run, tmp_path: Path, output: Path) -> None:
    ids = ["a", "b", "a", "c", "b", "a", *map(str, range(30))]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"id": own, "text": "fine"}) for own in ids))
    run(tmp_path / "rows.jsonl")
    assert verify(output).duplicate_ids == {"a": 3, "b": 2}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["flat", "milvus flat"])
def test_an_index_takes_an_output(
    run: Run, texts: Path, output: Path, make_index: MakeIndex, kind: str, dtype: str
) -> None:
    run(texts, dtype=dtype)
    index = make_index(kind, dimensions=8, fingerprint=INFO["fingerprint"])
    for _ in range(2):  # what is loaded again is replaced
        assert load_into(index, output) == len(index) == 30
    for row in read_folder(output / "shards"):
        first = index.search(np.array(row["embedding"], np.float32), k=1)[0]
        assert first.score == pytest.approx(1, abs=1e-5)
        match = next(m for m in index.search(np.array(row["embedding"], np.float32), k=30) if m.id == row["id"])
        assert match.score == pytest.approx(1, abs=1e-5)
        assert match.metadata == json.loads(row["metadata"])


def test_an_index_refuses_an_output(run: Run, texts: Path, tmp_path: Path, output: Path, make_index: MakeIndex) -> None:
    run(texts)
    with pytest.raises(InvalidInputError, match="fingerprint '0123456789abcdef', but the index holds vectors of 'f'"):
        load_into(make_index("flat", dimensions=8), output)
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}')
    run(tmp_path / "rows.jsonl", output=tmp_path / "other")
    index = make_index("flat", dimensions=8, fingerprint=INFO["fingerprint"])
    with pytest.raises(InvalidInputError, match=r"several vectors for an id \(\{'a': 2\}\)"):
        load_into(index, tmp_path / "other")
    assert len(index) == 0


@pytest.mark.parametrize("folder", ["shards", "errors"])
@pytest.mark.parametrize("damage", ["a bit", "gone", "cut"])
def test_damaged_files_are_told(run: Run, texts: Path, output: Path, folder: str, damage: str) -> None:
    run(texts)
    file = min((output / folder).iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        file.unlink()
    with pytest.raises(OutputError, match=rf"{folder}/{file.name}' is damaged .*Restore it, or embed"):
        verify(output)
    uses = {"shards": lambda: list(read_blocks(output)), "errors": lambda: run(texts, retry_errors=True)}
    with pytest.raises(OutputError, match=rf"{file.name}' is damaged"):
        uses[folder]()


def test_a_damaged_list_of_files_is_told(run: Run, texts: Path, output: Path) -> None:
    run(texts)
    (output / "input.jsonl").write_text("")
    for use in (verify, lambda output: run(texts)):
        with pytest.raises(OutputError, match=r"input\.jsonl' is damaged \(its checksum is another\)"):
            use(output)


def lines_of(output: Path) -> list[bytes]:
    return (output / "manifest.jsonl").read_bytes().splitlines(keepends=True)


def refuse(run: Run, texts: Path, output: Path, index: Index, error: type[VlembedError], told: str) -> None:
    """Hold that nothing which reads the manifest accepts it, and that the next run changes nothing."""
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    uses = [verify, lambda output: next(read_blocks(output)), lambda output: load_into(index, output)]
    for use in [*uses, lambda _: run(texts), lambda _: run(texts, retry_errors=True)]:
        with pytest.raises(error, match=told):
            use(output)
    assert len(index) == 0
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("seed", range(4))
def test_a_bit_of_the_manifest(run: Run, texts: Path, output: Path, make_index: MakeIndex, seed: int) -> None:
    """The last line break alone may be lost: then the last line is torn, and its shard is embedded again."""
    report = run(texts)
    data = (output / "manifest.jsonl").read_bytes()
    index = make_index("flat", dimensions=8, fingerprint=INFO["fingerprint"])
    for bit in random.Random(seed).sample(range(8 * (len(data) - 1)), 100):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (output / "manifest.jsonl").write_bytes(damaged)
        refuse(
            run, texts, output, index, OutputError, r"manifest\.jsonl' is damaged: .*Restore the file from a copy, or"
        )
    (output / "manifest.jsonl").write_bytes(data[:-1] + b"\x0b")
    with pytest.raises(OutputError, match="only 3 of 4 shards"):
        verify(output)
    assert run(texts) == report
    assert verify(output).num_embedded == report.num_embedded


@pytest.mark.parametrize("line", [0, 4])
def test_every_bit_of_a_line_of_the_manifest(run: Run, texts: Path, output: Path, line: int) -> None:
    run(texts)
    lines = lines_of(output)
    start = sum(map(len, lines[:line]))
    data = bytearray(b"".join(lines))
    for bit in range(8 * start, 8 * (start + len(lines[line]) - 1)):
        data[bit // 8] ^= 1 << bit % 8
        (output / "manifest.jsonl").write_bytes(data)
        with pytest.raises(OutputError, match=rf"line {line + 1} of .*manifest\.jsonl' is damaged"):
            read_manifest(output)
        data[bit // 8] ^= 1 << bit % 8


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "empty": lambda lines: [],
    "only a torn line": lambda lines: [lines[0][:-1]],
    "without its first line": lambda lines: lines[1:],
    "without a line within": lambda lines: [*lines[:2], *lines[3:]],
    "a line twice": lambda lines: [*lines[:3], *lines[2:]],
    "the last line twice": lambda lines: [*lines, lines[-1]],
    "in another order": lambda lines: [lines[0], *reversed(lines[1:])],
    "a blank line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "a line of another output": lambda lines: [*lines[:-1], lines[-1].replace(b'"shard": 3', b'"shard": 2')],
    "other line breaks": lambda lines: [line.replace(b"\n", b"\r\n") for line in lines],
    "a line break lost": lambda lines: [*lines[:2], lines[2][:-1], *lines[3:]],
    "zeros at its end": lambda lines: [*lines, b"\0" * 4096 + b"\n"],
    "a key twice": lambda lines: [lines[0][:-2] + b', "rows": 30}\n', *lines[1:]],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_told(run: Run, texts: Path, output: Path, make_index: MakeIndex, damage: str) -> None:
    run(texts)
    (output / "manifest.jsonl").write_bytes(b"".join(DAMAGES[damage](lines_of(output))))
    index = make_index("flat", dimensions=8, fingerprint=INFO["fingerprint"])
    refuse(run, texts, output, index, OutputError, r"manifest\.jsonl' is damaged: .*Restore the file from a copy, or")


def test_lines_that_are_lost_from_the_end_are_embedded_again(run: Run, texts: Path, output: Path) -> None:
    report = run(texts)
    lines = lines_of(output)
    for num_left in range(1, len(lines)):
        (output / "manifest.jsonl").write_bytes(b"".join(lines[:num_left]) + b'{"shard": 3, "fil')
        with pytest.raises(
            OutputError, match=f"only {num_left - 1} of 4 shards .* Run the command that began it again"
        ):
            verify(output)
        assert run(texts) == report
        assert verify(output).num_embedded == report.num_embedded


def test_a_manifest_that_names_a_row_twice(run: Run, texts: Path, output: Path) -> None:
    run(texts)
    manifest = read_manifest(output)
    manifest.append({**manifest.records[1], "files": manifest.records[0]["files"]})
    with pytest.raises(OutputError, match=r"has \d+ rows \(\d+ different ones\) of 35 of the input"):
        verify(output)


def test_what_is_no_output(tmp_path: Path) -> None:
    for use in (verify, lambda output: next(read_blocks(output))):
        with pytest.raises(InvalidInputError, match=r"is no output of a bulk run .*Pass the folder that one wrote"):
            use(tmp_path)


@pytest.mark.parametrize("version", [1, 3])
def test_an_output_of_another_release(
    run: Run, texts: Path, output: Path, make_index: MakeIndex, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vlembed.bulk._manifest.FORMAT", version)
        run(texts)
    if version == 1:  # which had no checksums
        lines = [{name: own for name, own in json.loads(line).items() if name != "check"} for line in lines_of(output)]
        (output / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    index = make_index("flat", dimensions=8, fingerprint=INFO["fingerprint"])
    told = f"has format {version}; this release reads 2. Use the release that wrote it, or embed the input into another"
    refuse(run, texts, output, index, InvalidInputError, told)
