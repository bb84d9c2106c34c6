"""`theirs` are metrics written out in numpy; `ours` come from files, through the evaluators, to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from finetune import evaluate
from finetune.compression import CANDIDATES, matryoshka_sizes, score_compression, score_functions
from finetune.data import DataError, Side
from finetune.in_process import CheckpointEncoder
from finetune.report import draw, to_markdown, write_report
from finetune.scores import METRICS, mean_of, score_pairs, score_retrieval, score_similarity
from finetune.served import ServedEncoder
from finetune.tasks import RetrievalTask, read_pairs, read_retrieval, read_similarity
from finetune.vectors import VectorTable
from tests.samples import image
from vlembed import EmbeddingClient, InvalidInputError, ItemError

ROOT = Path(__file__).resolve().parents[2]
EXACT = 1e-6  # float32 cosines on both sides
SERVED = 1e-4  # onnxruntime and torch order their sums differently
HIDDEN_SIZE = 256

Vectors = npt.NDArray[np.float32]


class FakeEncoder:
    """Gives each text a vector: its own if `known`, else a random one."""

    def __init__(self, known: dict[str, Sequence[float]] | None = None, hidden_size: int = HIDDEN_SIZE) -> None:
        self.known = known or {}
        self.hidden_size = hidden_size
        self.seen: list[Side] = []

    def identity(self) -> dict[str, Any]:
        return {"checkpoint": "fake", "dimensions": self.hidden_size}

    def encode(self, sides: Sequence[Side]) -> Vectors:
        self.seen += sides
        vectors = np.random.default_rng(0).normal(size=(len(sides), self.hidden_size)).astype(np.float32)
        for vector, side in zip(vectors, sides, strict=True):
            if side["text"] in self.known:
                vector[:] = self.known[side["text"]]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder: Path, queries: Sequence[object], gallery: Sequence[object]) -> tuple[RetrievalTask, VectorTable]:
    table = VectorTable()
    files = write_rows(folder / "queries.jsonl", queries), write_rows(folder / "gallery.jsonl", gallery)
    return read_retrieval("search", *files, table), table


def ranking_metrics(scores: npt.NDArray[Any], relevant: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return what every metric is for scores and relevance, both (n, m)."""
    hits = np.take_along_axis(relevant, np.argsort(-scores, axis=1), axis=1)
    num_relevant = relevant.sum(1)
    discounts = 1 / np.log2(np.arange(2, 12))
    top = np.pad(hits[:, :10], ((0, 0), (0, max(0, 10 - hits.shape[1]))))
    ideal = np.array([discounts[: min(10, count)].sum() for count in num_relevant])
    first = np.where(top.any(1), 1 / (1 + top.argmax(1)), 0)
    return {
        **{f"recall@{k}": float((hits[:, :k].sum(1) / num_relevant).mean()) for k in (1, 5, 10)},
        **{f"success@{k}": float(hits[:, :k].any(1).mean()) for k in (1, 5, 10)},
        "mrr@10": float(first.mean()),
        "ndcg@10": float(((top * discounts).sum(1) / ideal).mean()),
    }


def test_similarity(tmp_path: Path) -> None:
    gold = [3.5, 1, 2, 5, 0, 4]
    rows = [{"a": f"a {i}", "b": f"b {i}", "score": score} for i, score in enumerate(gold)]
    table = VectorTable()
    task = read_similarity("sts", write_rows(tmp_path / "pairs.jsonl", rows), table)
    table.embed(FakeEncoder())
    ours = score_similarity(task, table)
    cosines = (table.lookup(task.rows_a) * table.lookup(task.rows_b)).sum(1)
    theirs = np.corrcoef(gold, cosines)[0, 1]
    theirs_of_ranks = np.corrcoef(np.argsort(np.argsort(gold)), np.argsort(np.argsort(cosines)))[0, 1]
    assert ours["pearson"] == pytest.approx(theirs, abs=EXACT)
    assert ours["spearman"] == pytest.approx(theirs_of_ranks, abs=EXACT)
    assert (ours["name"], ours["pairs"]) == ("sts", 6)


def test_pairs(tmp_path: Path) -> None:
    cosines, labels = [0.9, 0.8, 0.6, 0.5, 0.1], [1, 1, 0, 1, 0]
    known = {f"b {i}": [cosine, float(np.sqrt(1 - cosine**2))] for i, cosine in enumerate(cosines)}
    rows = [{"a": "a", "b": f"b {i}", "score": label} for i, label in enumerate(labels)]
    table = VectorTable()
    task = read_pairs("same", write_rows(tmp_path / "pairs.jsonl", rows), table)
    table.embed(FakeEncoder({"a": [1, 0], **known}, hidden_size=2))
    ours = score_pairs(task, table)
    assert ours["ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)  # precision where each positive is found
    assert ours["accuracy"] == pytest.approx(4 / 5)
    assert ours["accuracy_threshold"] == pytest.approx((0.8 + 0.6) / 2, abs=EXACT)
    assert ours["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))  # all positives, and the pair of 0.6 with them
    assert ours["f1_threshold"] == pytest.approx((0.5 + 0.1) / 2, abs=EXACT)
    assert (ours["pairs"], ours["positives"]) == (5, 3)


def random_search(folder: Path, num_queries: int = 40, num_entries: int = 90) -> tuple[RetrievalTask, VectorTable]:
    """Return queries with one to three relevant entries each, near enough to be found sometimes."""
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(30, HIDDEN_SIZE))
    known: dict[str, Sequence[float]] = {}

    def rows(name: str, count: int) -> list[dict[str, object]]:
        for i in range(count):
            known[f"{name} {i}"] = (centres[i % 30] + 3 * generator.normal(size=HIDDEN_SIZE)).tolist()
        return [{"id": [f"id {i % 30}", f"{name} alone"], "text": f"{name} {i}"} for i in range(count)]

    task, table = read(folder, rows("query", num_queries), rows("entry", num_entries))
    table.embed(FakeEncoder(known))
    return task, table


def test_retrieval(tmp_path: Path) -> None:
    task, table = random_search(tmp_path)
    ours = score_retrieval(task, table)
    scores = table.lookup([query.row for query in task.queries]) @ table.lookup([entry.row for entry in task.gallery]).T
    relevant = np.array([[bool(query.ids & entry.ids) for entry in task.gallery] for query in task.queries])
    theirs = ranking_metrics(scores, relevant)
    assert 0.1 < theirs["recall@1"] < theirs["success@1"] < 1  # neither trivial nor the same
    assert {metric: ours[metric] for metric in METRICS} == pytest.approx(theirs, abs=EXACT)
    assert (ours["queries"], ours["gallery"], len(ours["cells"])) == (40, 90, 1)


def test_cells_search_their_language_alone(tmp_path: Path) -> None:
    known: dict[str, Sequence[float]] = {
        "Hund": [1, 0, 0], "Katze": [0, 1, 0],
        "chien": [1, 0.1, 0], "chat": [0, 1, 0.1],
        "dog": [0, 1, 0], "cat": [1, 0, 0],  # English has them the wrong way round
        "oiseau": [0, 0, 1],
    }  # fmt: skip
    names = {"de": {"1": "Hund", "2": "Katze"}, "en": {"1": "dog", "2": "cat"}, "fr": {"1": "chien", "2": "chat"}}
    rows: list[dict[str, object]] = [
        {"id": i, "language": language, "text": text} for language, texts in names.items() for i, text in texts.items()
    ]
    rows.append({"id": "3", "language": "fr", "text": "oiseau"})
    task, table = read(tmp_path, rows, rows)
    table.embed(FakeEncoder(known, hidden_size=3))
    ours = score_retrieval(task, table)
    cells = {(cell["query_language"], cell["gallery_language"]): cell for cell in ours["cells"]}
    right_and_wrong = {pair: cell["recall@1"] for pair, cell in cells.items()}
    assert right_and_wrong == {
        ("de", "de"): 1, ("de", "en"): 0, ("de", "fr"): 1,
        ("en", "de"): 0, ("en", "en"): 1, ("en", "fr"): 0,
        ("fr", "de"): 1, ("fr", "en"): 0, ("fr", "fr"): 1,
    }  # fmt: skip
    assert [cells["de", language]["gallery"] for language in names] == [2, 2, 3]
    assert cells["fr", "de"]["queries"] == 2  # nobody has a German bird
    assert cells["fr", "de"]["without_relevant"] == 1
    assert ours["recall@1"] == pytest.approx(2 / 6)  # one language on both sides is left out
    assert ours["cells_in_mean"] == 6
    markdown = to_markdown(results([ours]))
    assert "| de | 1.0000 | 0.6309 | 1.0000 |" in markdown
    assert "de in de, en in en, fr in fr" in markdown
    assert "left out of that cell: 2" in markdown  # the bird, of German and of English


def test_one_language_counts_where_there_are_no_others(tmp_path: Path) -> None:
    rows = [{"id": language, "language": language, "text": f"{language} text"} for language in ("de", "fr")]
    task, table = read(tmp_path, rows, rows)
    table.embed(FakeEncoder())
    ours = score_retrieval(task, table)
    assert ours["recall@1"] == 1
    assert [cell["in_mean"] for cell in ours["cells"]] == [True, False, False, True]
    assert [cell["queries"] for cell in ours["cells"]] == [1, 0, 0, 1]
    assert "| de | 1.0000 | – |" in to_markdown(results([ours]))


def test_images_are_a_column_of_their_own(tmp_path: Path) -> None:
    image(64, 64).save(tmp_path / "apple.png")
    names = [{"id": ["1"], "language": language, "text": language} for language in ("de", "fr")]
    picture = {"id": "1", "image": "apple.png"}
    task, table = read(tmp_path, names, [picture, {**names[0], "text": "Apfel"}])
    table.embed(FakeEncoder())
    cells = score_retrieval(task, table)["cells"]
    pairs = [(cell["query_language"], cell["gallery_language"]) for cell in cells]
    assert pairs == [("de", "image"), ("de", "de"), ("fr", "image"), ("fr", "de")]
    assert [cell["in_mean"] for cell in cells] == [True, False, True, True]
    both = read(tmp_path, names, [{**picture, "text": "a caption"}])[0]
    assert not both.gallery[0].is_image
    assert table.sides[2]["image"] == str(tmp_path / "apple.png")


def test_every_distinct_item_is_embedded_once(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"text {i % 3}"} for i in range(9)]
    table, encoder = VectorTable(), FakeEncoder()
    path = write_rows(tmp_path / "rows.jsonl", rows)
    for name in ("one", "two"):
        read_retrieval(name, path, path, table)
    read_retrieval("other", path, path, table, query_instruction="Find it.")
    table.embed(encoder)
    assert len(encoder.seen) == 6
    assert [side["instruction"] for side in encoder.seen] == [""] * 3 + ["Find it."] * 3


def test_a_querys_own_instruction_wins(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"id": "1", "text": "a", "instruction": "Mine."}])
    table = VectorTable()
    read_retrieval("search", path, path, table, query_instruction="Find it.")
    assert [side["instruction"] for side in table.sides] == ["Mine."]


@pytest.mark.parametrize(
    ("hidden_size", "sizes"),
    [(64, [64]), (128, [64, 128]), (96, [64, 96]), (2048, [64, 128, 256, 512, 1024, 2048]), (32, [32])],
)
def test_matryoshka_sizes(hidden_size: int, sizes: list[int]) -> None:
    assert matryoshka_sizes(hidden_size) == sizes


def test_compression(tmp_path: Path) -> None:
    task, table = random_search(tmp_path)
    plain, rows = score_retrieval(task, table), score_compression(task, table)
    assert [(row["dimensions"], row["precision"]) for row in rows] == [
        (dimensions, precision) for dimensions in (64, 128, 256) for precision in ("float32", "int8", "binary")
    ]
    whole = {row["precision"]: row for row in rows if row["dimensions"] == HIDDEN_SIZE}
    for metric in ("recall@1", "recall@10", "ndcg@10"):
        assert whole["float32"][metric] == plain[metric]
        assert whole["int8"][metric] == pytest.approx(plain[metric], abs=0.1)
    assert [row["bytes"] for row in rows] == [256, 64, 8, 512, 128, 16, 1024, 256, 32]
    assert [row["bytes_reread"] for row in rows] == [0, 0, 64, 0, 0, 128, 0, 0, 256]
    assert rows[0]["ndcg@10"] < plain["ndcg@10"]  # 64 of 256 random numbers tell less


def test_shorter_vectors_are_of_unit_norm(tmp_path: Path) -> None:
    _, table = random_search(tmp_path)
    whole = table.lookup([3, 5])
    theirs = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(table.lookup([3, 5], 64), theirs, atol=EXACT)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_candidates_and_their_order(precision: str) -> None:
    generator = np.random.default_rng(2)
    gallery, queries = (generator.normal(size=(count, 64)).astype(np.float32) for count in (200, 5))
    ours = score_functions(gallery)[precision](torch.from_numpy(queries), torch.from_numpy(gallery)).numpy()
    low, high = gallery.min(0), gallery.max(0)
    steps = (high - low) / 255

    def codes(vectors: Vectors) -> Any:
        return np.floor((vectors - low) / steps).clip(0, 255) - 128

    decoded = low + (codes(gallery) + 128.5) * steps
    assert abs(decoded - gallery).max() <= steps.max() * 0.51
    distances = ((queries[:, None] > 0) != (gallery > 0)).sum(-1)
    coarse = codes(queries) @ codes(gallery).T if precision == "int8" else -distances
    fine = queries @ decoded.T
    for ours_row, coarse_row, fine_row in zip(ours, coarse, fine, strict=True):
        kept = np.flatnonzero(np.isfinite(ours_row))
        assert len(kept) == CANDIDATES
        assert coarse_row[kept].min() >= np.delete(coarse_row, kept).max()
        np.testing.assert_allclose(ours_row[kept], fine_row[kept], atol=1e-4)


def results(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": {"checkpoint": "fake"},
        "settings": {"max_pixels": None},
        "date": "2026-01-01T00:00:00+00:00",
        "commit": None,
        "items_embedded": 1234,
        "tasks": tasks,
    }


def test_report(tmp_path: Path) -> None:
    task, table = random_search(tmp_path)
    scored = score_retrieval(task, table) | {"compression": score_compression(task, table)}
    markdown = write_report(results([scored]), tmp_path / "deep/report")
    folder = tmp_path / "deep/report"
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md", "results.png"]
    assert (folder / "results.md").read_text(encoding="utf-8") == markdown
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == results([scored])
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    numbers = " | ".join(f"{scored[metric]:.4f}" for metric in METRICS)
    assert f"| search | 40 | 90 | {numbers} |" in markdown
    row = scored["compression"][-1]
    shown = " | ".join(f"{row[metric]:.4f}" for metric in ("recall@1", "recall@10", "ndcg@10"))
    assert f"| 256 | binary | 32 | 256 | {shown} |" in markdown
    assert "| items embedded | 1,234 |" in markdown
    assert "| max pixels | – |" in markdown
    del scored["compression"]
    assert draw(results([scored])) is None
    write_report(results([scored]), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]  # no stale picture


def test_means_are_of_cells_not_of_queries() -> None:
    cells = [{"in_mean": True, **dict.fromkeys(METRICS, value)} for value in (0.0, 1.0)]
    assert mean_of([*cells, {"in_mean": False, **dict.fromkeys(METRICS, 7.0)}]) == dict.fromkeys(METRICS, 0.5)


ROW = {"id": "1", "text": "a"}
PAIR = {"a": "a", "b": "b", "score": 1}


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([], r"queries.jsonl has no rows. Pass"),
        ([ROW, "a"], r"queries.jsonl:2: WRONG_TYPE the row is 'a'"),
        ([{"text": "a"}], r"queries.jsonl:1: WRONG_TYPE id of the row is None"),
        ([{"id": [], "text": "a"}], r"queries.jsonl:1: WRONG_TYPE id of the row is \[\]"),
        ([{"id": 7, "text": "a"}], r"queries.jsonl:1: WRONG_TYPE id of the row is 7 of type int; it needs to be"),
        ([{"id": "1"}], r"queries.jsonl:1: ITEM_EMPTY"),
        ([{"id": "1", "txt": "a"}], r"queries.jsonl:1: KEY_UNKNOWN the row has the key 'txt'"),
        ([{"id": "1", "text": "a", "language": 3}], r"queries.jsonl:1: WRONG_TYPE language of the row"),
        ([{"id": "1", "image": "none.png"}], r"queries.jsonl:1: FILE_UNREADABLE.*none.png"),
        ([{"id": "1", "image": "gallery.jsonl"}], r"queries.jsonl:1: IMAGE_UNDECODABLE"),
        ([ROW, {"id": ["x", "y"], "text": "a"}], r"queries.jsonl:2: NOTHING_RELEVANT no row of .* id 'x' or 'y'. Add"),
    ],
)
def test_bad_retrieval_rows(tmp_path: Path, queries: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, queries, [ROW])


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "gallery.jsonl"
    path.write_text('{"id": "1", "text": "a"}\n\n{"id": "2",\n')
    with pytest.raises(DataError, match=r"1 of 2 rows are bad:\n.*gallery.jsonl:3: NOT_JSON"):
        read_retrieval("search", path, path, VectorTable())


@pytest.mark.parametrize(
    ("reader", "rows", "message"),
    [
        (read_similarity, [PAIR, PAIR], "every score is 1; a correlation needs two"),
        (read_pairs, [PAIR, PAIR], "every score is 1; both 0 and 1 are needed"),
        (read_pairs, [PAIR, {**PAIR, "score": 0.5}], r"pairs.jsonl:2: SCORE_NOT_LABEL score is 0.5; .*--similarity"),
        (read_pairs, [{"anchor": "a", "positive": "b"}], "has contrastive rows; this task needs"),
        (read_similarity, [{"anchor": "a", "positive": "b"}], "has contrastive rows; this task needs"),
    ],
)
def test_bad_pairs(tmp_path: Path, reader: Callable[..., Any], rows: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader("pairs", write_rows(tmp_path / "pairs.jsonl", rows), VectorTable())


def test_a_refused_item_is_named_by_its_line(tmp_path: Path) -> None:
    class Refusing(FakeEncoder):
        def encode(self, sides: Sequence[Side]) -> Vectors:
            raise InvalidInputError.of_items([ItemError(1, "TEXT_TOO_LONG", "Shorten it.")], len(sides))

    _, table = read(tmp_path, [ROW], [ROW, {"id": "2", "text": "too long"}])
    with pytest.raises(DataError, match=r"1 items are refused:\n.*gallery.jsonl:2: TEXT_TOO_LONG Shorten it."):
        table.embed(Refusing())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "grpc://127.0.0.1:1"], "no task. Pass --similarity"),
        (["--pairs", "p=x"], "one of the arguments --checkpoint --url is required"),
        (["--url", "u", "--checkpoint", "c", "--pairs", "p=x"], "not allowed with"),
        (["--url", "u", "--pairs", "p=x", "--similarity", "p=x"], "two tasks have the name 'p'"),
        (["--url", "u", "--pairs", "x.jsonl"], "'x.jsonl' is not of the form NAME=FILE"),
        (["--url", "u", "--retrieval", "r=x"], "'r=x' is not of the form NAME=FILE:FILE"),
        (["--url", "u", "--pairs", "p=x", "--compression", "p"], "--compression 'p' is no --retrieval task"),
        (["--url", "u", "--pairs", "p=missing.jsonl"], "missing.jsonl cannot be read"),
        (["--url", "u", "--retrieval", "r=missing.jsonl:b"], "missing.jsonl cannot be read (No such file"),
        (["--url", "u", "--retrieval", "r={rows}:{rows}"], "url is 'u', which has no scheme"),
        (["--url", "grpc://127.0.0.1:1", "--retrieval", "r={rows}:{rows}"], "127.0.0.1:1"),
        (["--checkpoint", "{folder}", "--retrieval", "r={rows}:{rows}"], "config.json is missing"),
        (["--checkpoint", "x", "--max-pixels", "5", "--retrieval", "r={rows}:{rows}"], "max_pixels is 5; a server"),
    ],
)
def test_refusals_of_the_command(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [ROW])
    filled = [argument.format(rows=rows, folder=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["evaluate", "--output", str(tmp_path / "out"), *filled])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """Write files of every kind: texts in three languages, images, and both."""
    names = {"1": {"en": "red apple", "de": "roter Apfel"}, "2": {"en": "dog", "de": "Hund"}, "3": {"zh": "一只猫"}}
    for identifier, seed in (("1", 0), ("2", 1), ("3", 2)):
        image(200, 150, seed=seed).save(tmp_path / f"{identifier}.png")
    texts = [
        {"id": identifier, "language": language, "text": text}
        for identifier, of_language in names.items()
        for language, text in of_language.items()
    ]
    images = [{"id": identifier, "image": f"{identifier}.png"} for identifier in names]
    pairs = [
        {"a": "red apple", "b": "roter Apfel", "score": 1},
        {"a": {"image": "1.png"}, "b": {"text": "dog", "instruction": "Find the dog."}, "score": 0},
        {"a": {"text": "dog.png"}, "b": {"text": "a dog", "image": "2.png"}, "score": 1},
    ]
    rows: dict[str, Sequence[object]] = {"texts": texts, "images": images, "pairs": pairs}
    return {name: write_rows(tmp_path / f"{name}.jsonl", values) for name, values in rows.items()}


def command(data: dict[str, Path], output: Path, *options: str) -> dict[str, Any]:
    """Run the command as a user does and return its results."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "finetune.evaluate", "--output", str(output), *options),
            *("--similarity", f"scores={data['pairs']}", "--pairs", f"labels={data['pairs']}"),
            *("--retrieval", f"text to image={data['texts']}:{data['images']}", "--compression", "text to image"),
            *("--retrieval", f"image to text={data['images']}:{data['texts']}"),
            *("--retrieval", f"across={data['texts']}:{data['texts']}"),
            *("--query-instruction", "Find what it shows.", "--max-pixels", "16384"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (output / "results.md").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return loaded


def close(ours: Any, theirs: Any) -> None:
    """Compare whatever JSON holds, numbers within `SERVED`."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            close(ours[key], theirs[key])
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            close(one, other)
    else:
        assert ours == (pytest.approx(theirs, abs=SERVED) if isinstance(ours, float) else theirs)


@pytest.mark.triton
def test_a_server_and_its_checkpoint_give_the_same(
    data: dict[str, Path], tmp_path: Path, url: str, tiny_checkpoint: Path
) -> None:
    served = command(data, tmp_path / "served", "--url", url)
    in_process = command(data, tmp_path / "in process", "--checkpoint", str(tiny_checkpoint))
    assert [task["name"] for task in served["tasks"]] == [
        "scores",
        "labels",
        "text to image",
        "image to text",
        "across",
    ]
    close(served["tasks"], in_process["tasks"])
    assert served["items_embedded"] == in_process["items_embedded"] == 19  # 8 queries, 8 of galleries, 3 of pairs only
    with EmbeddingClient(url) as client:
        assert served["model"]["fingerprint"] == client.info().fingerprint
    assert served["model"]["url"] == url
    assert in_process["model"]["checkpoint"] == served["model"]["checkpoint"] == "random-tiny"
    assert served["settings"] == {"max_pixels": 16384, "query_instruction": "Find what it shows."}
    assert served["versions"].keys() == {"sentence-transformers", "transformers", "torch", "numpy", "vlembed"}
    assert (tmp_path / "served/results.png").is_file()


@pytest.mark.triton
def test_vectors_agree_and_budget_and_instruction_count(tmp_path: Path, url: str, tiny_checkpoint: Path) -> None:
    image(600, 400).save(tmp_path / "large.png")
    picture: Side = {"text": "", "image": str(tmp_path / "large.png"), "instruction": ""}
    both: Side = {**picture, "text": "what is it?", "instruction": "Find the answer."}
    text: Side = {"text": "https://example.com/a.png", "image": "", "instruction": "Find the page."}
    plain: Side = {**text, "instruction": ""}
    sides = [picture, both, text, plain]
    vectors = {}
    for max_pixels in (None, 16384):
        ours = ServedEncoder(url, max_pixels=max_pixels).encode(sides)
        theirs = CheckpointEncoder(str(tiny_checkpoint), max_pixels=max_pixels).encode(sides)
        np.testing.assert_allclose(ours, theirs, atol=SERVED)
        vectors[max_pixels] = ours
    changed = abs(vectors[None] - vectors[16384]).max(1)
    assert changed[:2].min() > 0.01
    assert changed[2:].max() < SERVED
    assert abs(vectors[None][2] - vectors[None][3]).max() > 0.01


@pytest.mark.triton
def test_dimensions_of_a_server(url: str) -> None:
    sides: list[Side] = [{"text": f"text {i}", "image": "", "instruction": ""} for i in range(300)]  # more than a block
    encoder = ServedEncoder(url)
    ours, whole = encoder.encode(sides, dimensions=64), encoder.encode(sides)
    assert encoder.encode([]).shape == (0, 128)
    np.testing.assert_allclose(ours, whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True), atol=EXACT)


@pytest.mark.triton
@pytest.mark.parametrize("kind", ["served", "in process"])
def test_both_encoders_name_the_line_of_a_refused_item(
    tmp_path: Path, url: str, tiny_checkpoint: Path, kind: str
) -> None:
    rows = [{"id": str(i), "text": f"text {i}" if i != 290 else "word " * 9000} for i in range(300)]
    task, table = read(tmp_path, rows[:1], rows)
    encoder = ServedEncoder(url) if kind == "served" else CheckpointEncoder(str(tiny_checkpoint))
    assert len(task.gallery) == 300
    with pytest.raises(DataError, match=r"1 items are refused:\n\S*gallery.jsonl:291: TEXT_TOO_LONG"):
        table.embed(encoder)
