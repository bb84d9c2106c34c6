"""What a run wrote, read again, held against its checksums and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.client.bulk.conftest import Run, read_folder
from tests.client.conftest import INFO
from tests.client.indexes import MakeIndex
from vlembed import InvalidInputError, OutputError
from vlembed.bulk import load_into, read_blocks, verify


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
    if folder == "shards":
        with pytest.raises(OutputError, match=rf"{file.name}' is damaged"):
            list(read_blocks(output))


def test_a_damaged_list_of_files_is_told(run: Run, texts: Path, output: Path) -> None:
    run(texts)
    (output / "input.jsonl").write_text("")
    for use in (verify, lambda output: run(texts)):
        with pytest.raises(OutputError, match=r"input\.jsonl' is damaged \(its checksum is another\)"):
            use(output)


@pytest.mark.parametrize("line", [0, 2])
@pytest.mark.parametrize("damage", ["", "[1]", "\xff"])
def test_a_damaged_manifest_is_told(run: Run, texts: Path, output: Path, line: int, damage: str) -> None:
    run(texts)
    lines = (output / "manifest.jsonl").read_text().splitlines(keepends=True)
    lines[line] = damage + lines[line][5:]
    (output / "manifest.jsonl").write_text("".join(lines), encoding="latin-1")
    for use in (verify, lambda output: run(texts)):
        with pytest.raises(OutputError, match=rf"line {line + 1} of .*manifest\.jsonl' is damaged"):
            use(output)


def test_a_manifest_that_names_a_row_twice(run: Run, texts: Path, output: Path) -> None:
    run(texts)
    lines = (output / "manifest.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[1:]]
    records[1]["files"] = records[0]["files"]
    (output / "manifest.jsonl").write_text("\n".join([lines[0], *map(json.dumps, records)]) + "\n")
    with pytest.raises(OutputError, match=r"has \d+ rows \(\d+ different ones\) of 35 of the input"):
        verify(output)


def test_what_is_no_output(tmp_path: Path) -> None:
    for use in (verify, lambda output: next(read_blocks(output))):
        with pytest.raises(InvalidInputError, match=r"is no output of a bulk run .*Pass the folder that one wrote"):
            use(tmp_path)


def test_an_output_of_a_newer_release(run: Run, texts: Path, output: Path) -> None:
    run(texts)
    text = (output / "manifest.jsonl").read_text()
    (output / "manifest.jsonl").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(InvalidInputError, match="has format 2; this release reads 1"):
        verify(output)
