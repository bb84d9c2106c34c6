"""The file of an index: what is saved comes back, and nothing that is torn, foreign or newer is read."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from tests.client.indexes import (
    DIMENSIONS,
    FAISS,
    FINGERPRINT,
    Exhaustive,
    MakeIndex,
    assert_congruent,
    ids_of,
    vectors,
)
from vlembed import EmbeddingClient, Index, InvalidInputError, _faiss_store, _index, _index_file

ROOT = Path(__file__).resolve().parents[2]
every_kind = pytest.mark.parametrize("kind", FAISS)


def rows(num_rows: int) -> tuple[list[str], np.ndarray, list[dict]]:
    return [f"row {number} é" for number in range(num_rows)], vectors(num_rows), [{"n": n} for n in range(num_rows)]


@pytest.fixture
def saved(tmp_path: Path, make_index: MakeIndex) -> Path:
    """Save an index of 20 rows."""
    index = make_index("flat")
    ids, array, metadata = rows(20)
    index.add(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
    index.save(tmp_path / "a.index")
    return tmp_path / "a.index"


@every_kind
def test_what_is_saved_comes_back(kind: str, tmp_path: Path, make_index: MakeIndex) -> None:
    index, exhaustive = make_index(kind, instruction="Finde Bilder: 日本."), Exhaustive()
    ids, array, metadata = rows(300)
    index.add(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
    exhaustive.upsert(ids, array, metadata)
    index.delete(ids[:50])
    for own in ids[:50]:
        del exhaustive.rows[own]
    index.save(tmp_path / "a.index")
    loaded = Index.load(str(tmp_path / "a.index"))
    assert loaded.info == index.info and len(loaded) == 250
    loaded.save(tmp_path / "b.index")
    assert (tmp_path / "b.index").read_bytes() == (tmp_path / "a.index").read_bytes()
    (tmp_path / "b.index").unlink()
    queries = vectors(10, seed=3)
    assert list(loaded.search_batch(queries)) == list(index.search_batch(queries))
    filtered = [ids_of(own) for own in index.search_batch(queries, where={"n": {"<": 200}})]
    assert [ids_of(own) for own in loaded.search_batch(queries, where={"n": {"<": 200}})] == filtered
    more = vectors(30, seed=4)
    loaded.upsert(more, ids=ids[40:70], metadata=metadata[40:70], fingerprint=FINGERPRINT)
    exhaustive.upsert(ids[40:70], more, metadata[40:70])
    assert_congruent(kind, loaded, exhaustive, queries, 10)
    loaded.save(tmp_path / "a.index")  # over the file that it came from
    assert_congruent(kind, Index.load(tmp_path / "a.index"), exhaustive, queries, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]


def test_the_ranges_of_int8_are_learned_once(tmp_path: Path, make_index: MakeIndex) -> None:
    index = make_index("int8", train_size=100)
    ids, array, _ = rows(300)
    index.add(array[:100], ids=ids[:100], fingerprint=FINGERPRINT)

    def ranges(of: Index) -> list[float]:
        return faiss.vector_to_array(of._store._vectors._coarse.sq.trained).tolist()  # type: ignore[attr-defined]

    learned = ranges(index)
    index.add(3 * array[100:], ids=ids[100:], fingerprint=FINGERPRINT)
    index.save(tmp_path / "a.index")
    assert len(learned) == 2 * DIMENSIONS and ranges(index) == ranges(Index.load(tmp_path / "a.index")) == learned


@every_kind
def test_deletion_from_a_loaded_index(kind: str, tmp_path: Path, make_index: MakeIndex) -> None:
    index = make_index(kind)
    ids, array, metadata = rows(300)
    index.add(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
    index.save(tmp_path / "a.index")
    before = (tmp_path / "a.index").read_bytes()
    loaded = Index.load(tmp_path / "a.index")
    assert loaded.delete(ids[100:]) == 200
    assert sorted(ids_of(loaded.search(array[0], 300))) == sorted(ids[:100])
    assert (tmp_path / "a.index").read_bytes() == before


@every_kind
def test_an_empty_index(kind: str, tmp_path: Path, make_index: MakeIndex) -> None:
    make_index(kind).save(tmp_path / "a.index")
    loaded = Index.load(tmp_path / "a.index")
    assert len(loaded) == 0 and loaded.search(vectors(1)[0]) == []
    loaded.add(vectors(1), ids=["a"], fingerprint=FINGERPRINT)
    assert ids_of(loaded.search(vectors(1)[0])) == ["a"]
    loaded.save(tmp_path / "a.index")
    assert len(Index.load(tmp_path / "a.index")) == 1


def test_a_trained_ivfpq_index(tmp_path: Path, make_index: MakeIndex) -> None:
    index = make_index("ivfpq", train_size=256)
    ids, array, metadata = rows(400)
    index.add(array, ids=ids, metadata=metadata, fingerprint=FINGERPRINT)
    index.save(tmp_path / "a.index")
    loaded = Index.load(tmp_path / "a.index")
    assert list(loaded.search_batch(array[:20])) == list(index.search_batch(array[:20]))
    assert loaded.delete(ids[:100]) == index.delete(ids[:100]) == 100
    assert list(loaded.search_batch(array[:20])) == list(index.search_batch(array[:20]))


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in [*range(0, len(whole), 7), *range(len(whole) - 40, len(whole))]:
        saved.write_bytes(whole[:length])
        with pytest.raises(InvalidInputError, match=r"is no index that|is damaged|has format"):
            Index.load(saved)


def test_every_changed_byte_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for position in [*range(0, len(whole), 11), *range(len(whole) - 40, len(whole))]:
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        saved.write_bytes(changed)
        with pytest.raises(InvalidInputError):
            Index.load(saved)
    saved.write_bytes(whole + b"\n")
    with pytest.raises(InvalidInputError, match="no index"):
        Index.load(saved)
    saved.write_bytes(whole[:100] + whole)
    with pytest.raises(InvalidInputError, match="is damaged: its size"):
        Index.load(saved)
    saved.write_bytes(whole)
    assert len(Index.load(saved)) == 20


def test_foreign_and_newer_files_are_refused(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" * 100)
    with pytest.raises(InvalidInputError, match=r"ends in b'\\x89PNG\\x89PNG': it is no index"):
        Index.load(tmp_path / "picture.png")
    data = b'{"something": "else"}'
    trailer = _index_file.TRAILER.pack(len(data), zlib.crc32(data), _index_file.FORMAT + 1, _index_file.MAGIC)
    saved.write_bytes(data + trailer)
    with pytest.raises(InvalidInputError, match=r"has format 2; this version of vlembed reads 1\. Upgrade"):
        Index.load(saved)
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            Index.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"language": "de"}, "was written by another version of vlembed .*'language'.* Upgrade vlembed"),
        ({"normalisation": "none"}, "was written by another version .*normalisation is 'none' and not 'l2'"),
        ({"kind": None}, "was written by another version of vlembed .*'kind'"),
        ({"dimensions": 8}, "has 20 ids of 8 dimensions, but 20 vectors of 16: it was not written by vlembed"),
    ],
)
def test_a_manifest_of_another_version(saved: Path, change: dict, says: str) -> None:
    whole = saved.read_bytes()
    size, *_ = _index_file.TRAILER.unpack(whole[-_index_file.TRAILER.size :])
    start = len(whole) - _index_file.TRAILER.size - size
    manifest = json.loads(whole[start : start + size])
    info = {**json.loads(manifest["info"]), **change}
    manifest["info"] = json.dumps({name: value for name, value in info.items() if value is not None})
    data = json.dumps(manifest).encode()
    trailer = _index_file.TRAILER.pack(len(data), zlib.crc32(data), _index_file.FORMAT, _index_file.MAGIC)
    saved.write_bytes(whole[:start] + data + trailer)
    with pytest.raises(InvalidInputError, match=says):
        Index.load(saved)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_what_faiss_cannot_read(kind: str, tmp_path: Path, make_index: MakeIndex) -> None:
    content = _index_file.Content(make_index(kind).info, [], [])
    _index_file.write(tmp_path / "a.index", content, lambda take: take(b"Newr" * 20))
    with pytest.raises(InvalidInputError, match=r"is whole, but FAISS [\d.]+ cannot read it .* Upgrade FAISS"):
        Index.load(tmp_path / "a.index")


def test_an_index_of_another_model_is_refused(saved: Path, client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match="'0123456789abcdef', but the index holds vectors of 'f'"):
        Index.load(saved, client=client)


def test_a_failed_save_leaves_the_old_file(saved: Path) -> None:
    index, before = Index.load(saved), saved.read_bytes()
    index.delete(["row 1 é"])
    for limit in (100, len(before) - 100):  # in FAISS's part, and behind it
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with pytest.raises(OSError, match=f"File too large: '{saved}'"):
                index.save(saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    with pytest.raises(OSError, match="No such file"):
        index.save(saved.parent / "nowhere" / "a.index")


def test_a_save_sees_all_of_an_add_or_none(
    tmp_path: Path, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_index, "BLOCK_ROWS", 7)
    index = make_index("flat")
    ids, array, _ = rows(20)
    saving = threading.Thread(target=index.save, args=[tmp_path / "a.index"])
    add, num_blocks = index._store.add, 0

    def failing(*block: Any) -> None:
        nonlocal num_blocks
        num_blocks += 1
        if num_blocks == 2:
            saving.start()
            time.sleep(0.2)  # the save would be over by now
            raise MemoryError
        add(*block)

    monkeypatch.setattr(index._store, "add", failing)
    with pytest.raises(MemoryError):
        index.add(array, ids=ids, fingerprint=FINGERPRINT)
    saving.join()
    assert len(Index.load(tmp_path / "a.index")) == 0


def test_a_link_and_a_mode_stay(saved: Path) -> None:
    link = saved.with_name("current")
    link.symlink_to(saved.name)
    saved.chmod(0o640)
    index = Index.load(link)
    index.delete(["row 1 é"])
    index.save(link)
    assert link.is_symlink() and len(Index.load(saved)) == 19
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640


def test_a_first_change_that_fails(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.load(saved)
    with monkeypatch.context() as patched:
        patched.setattr(_faiss_store, "_read", lambda _: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            index.delete(["row 1 é"])
    assert len(index.search(vectors(1)[0], 30)) == 20
    assert index.delete(["row 1 é"]) == 1
    assert len(index.search(vectors(1)[0], 30)) == 19


def test_the_file_is_as_readable_as_others(saved: Path) -> None:
    saved.with_name("other").touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(saved.with_name("other").stat().st_mode)


def test_killed_while_it_saves(saved: Path) -> None:
    """Save over the file again and again in a process that is killed at some moment of it."""
    code = f"""
import sys
import numpy as np
from vlembed import Index
index = Index.create(dimensions={DIMENSIONS}, fingerprint="{FINGERPRINT}")
index.add(np.ones((20_000, {DIMENSIONS})), ids=list(map(str, range(20_000))), fingerprint="{FINGERPRINT}")
while True:
    print("saving", flush=True)
    index.save(sys.argv[1])
"""
    interrupted = 0
    for delay_s in (0.0, 0.003, 0.01, 0.02):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "client")}
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(saved)], stdout=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdout is not None
        with process, process.stdout:
            assert process.stdout.readline() == "saving\n"
            try:
                process.wait(delay_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert len(Index.load(saved)) in (20, 20_000)
        interrupted += len(list(saved.parent.glob(".*.tmp")))
    assert interrupted  # or it was never killed while it wrote


def test_a_file_that_is_replaced_while_it_is_in_use(saved: Path, make_index: MakeIndex) -> None:
    loaded = Index.load(saved)
    other = make_index("flat")
    other.add(-vectors(1), ids=["other"], fingerprint=FINGERPRINT)
    other.save(saved)
    assert loaded.search(vectors(1)[0], 1)[0].id == "row 0 é"  # of the old file, which it has mapped
    loaded.add(vectors(1), ids=["new"], fingerprint=FINGERPRINT)
    assert len(loaded.search(vectors(1)[0], 100)) == 21
    assert ids_of(Index.load(saved).search(vectors(1)[0])) == ["other"]
