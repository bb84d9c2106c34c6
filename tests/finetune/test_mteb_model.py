"""mteb's tasks, made here, through a real server; `theirs` are the client's own vectors and numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import mteb
import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.types import PromptType

from finetune.mteb_model import ServedModel
from tests.samples import image
from vlembed import ConnectError, EmbeddingClient, Item

pytestmark = pytest.mark.triton

TOLERANCE = 1e-5  # the same vectors, from packs of other sizes
PROMPT = "Find the picture that is described."
ABOUT: dict[str, Any] = {
    "description": "Made by the tests.",
    "dataset": {"path": "none", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "reference": None,
    "date": None,
    "domains": None,
    "task_subtypes": None,
    "license": None,
    "annotations_creators": None,
    "dialect": None,
    "sample_creation": None,
    "bibtex_citation": None,
}
TEXTS = ["a red apple", "two dogs", "ein Haus", "一只猫在沙发上睡觉", "the night sky"]
PICTURES = [image(96, 64, seed=seed) for seed in range(5)]
PAIRS = [("a dog", "two dogs", 4.0), ("a dog", "the sky", 1.0), ("red", "ein Haus", 0.0), ("猫", "a cat", 5.0)]

Vectors = npt.NDArray[np.float32]


class LocalSTS(AbsTaskSTS):
    metadata = TaskMetadata(
        name="LocalSTS", type="STS", category="t2t", modalities=["text"], main_score="cosine_spearman", **ABOUT
    )
    min_score = 0
    max_score = 5

    def load_data(self, **_: Any) -> None:
        columns = [list(column) for column in zip(*PAIRS, strict=True)]
        names = ("sentence1", "sentence2", "score")
        self.dataset = {"test": Dataset.from_dict(dict(zip(names, columns, strict=True)))}
        self.data_loaded = True


def search(queries: dict[str, list[Any]], corpus: dict[str, list[Any]]) -> dict[str, dict[str, RetrievalSplitData]]:
    ids = [str(i) for i in range(len(TEXTS))]
    split = RetrievalSplitData(
        queries=Dataset.from_dict({"id": [f"q{i}" for i in ids], **queries}),
        corpus=Dataset.from_dict({"id": [f"d{i}" for i in ids], **corpus}),
        relevant_docs={f"q{i}": {f"d{i}": 1} for i in ids},
        top_ranked=None,
    )
    return {"default": {"test": split}}


class LocalTextToImage(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="LocalTextToImage",
        type="Any2AnyRetrieval",
        category="t2i",
        modalities=["text", "image"],
        main_score="ndcg_at_10",
        prompt={"query": PROMPT},
        **ABOUT,
    )

    def load_data(self, **_: Any) -> None:
        self.dataset = search({"text": TEXTS}, {"image": PICTURES})
        self.data_loaded = True


class LocalBothToText(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="LocalBothToText",
        type="Any2AnyRetrieval",
        category="it2t",
        modalities=["text", "image"],
        main_score="ndcg_at_10",
        **ABOUT,
    )

    def load_data(self, **_: Any) -> None:
        self.dataset = search({"text": TEXTS[::-1], "image": PICTURES}, {"text": TEXTS})
        self.data_loaded = True


class Recording(ServedModel):
    """Remembers what it embedded."""

    calls: ClassVar[dict[tuple[str, PromptType | None], Vectors]] = {}

    def encode(self, inputs: Any, **options: Any) -> Vectors:
        vectors = super().encode(inputs, **options)
        self.calls[options["task_metadata"].name, options["prompt_type"]] = vectors
        return vectors


@pytest.fixture(scope="module")
def scores(url: str) -> Callable[[Any], dict[str, float]]:
    """Run a task and return its scores."""
    model = Recording(url)

    def run(task: Any) -> dict[str, float]:
        found = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
        told: dict[str, float] = found.task_results[0].scores["test"][0]
        return told

    return run


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(url) as connected:
        yield connected


def ndcg(queries: Vectors, documents: Vectors) -> float:
    scores = queries @ documents.T
    ranks = (scores > np.diag(scores)[:, None]).sum(1)  # of document i for query i
    return float((1 / np.log2(ranks + 2)).mean())


def test_text_similarity(scores: Callable[[Any], dict[str, float]], client: EmbeddingClient) -> None:
    ours = scores(LocalSTS())
    texts_a, texts_b, gold = zip(*PAIRS, strict=True)
    a, b = (client.embed(texts, instruction=LocalSTS.abstask_prompt).array for texts in (texts_a, texts_b))
    cosines = (a * b).sum(1)
    theirs = np.corrcoef(cosines.argsort().argsort(), np.argsort(gold).argsort())[0, 1]
    assert ours["cosine_spearman"] == pytest.approx(theirs, abs=TOLERANCE)
    assert ours["main_score"] == ours["cosine_spearman"]


def test_text_to_image(scores: Callable[[Any], dict[str, float]], client: EmbeddingClient) -> None:
    ours = scores(LocalTextToImage())
    queries, documents = client.embed(TEXTS, instruction=PROMPT).array, client.embed(PICTURES).array
    assert ours["ndcg_at_10"] == pytest.approx(ndcg(queries, documents), abs=TOLERANCE)
    for prompt_type, theirs in ((PromptType.query, queries), (PromptType.document, documents)):
        np.testing.assert_allclose(Recording.calls["LocalTextToImage", prompt_type], theirs, atol=TOLERANCE)
    assert abs(queries - client.embed(TEXTS).array).max() > 0.01  # the instruction counts


def test_text_with_image_to_text(scores: Callable[[Any], dict[str, float]], client: EmbeddingClient) -> None:
    ours = scores(LocalBothToText())
    items = [Item(text=text, image=picture) for text, picture in zip(TEXTS[::-1], PICTURES, strict=True)]
    queries = client.embed(items, instruction=AbsTaskRetrieval.abstask_prompt).array
    assert ours["ndcg_at_10"] == pytest.approx(ndcg(queries, client.embed(TEXTS).array), abs=TOLERANCE)


def test_what_mteb_knows_of_the_model(url: str, client: EmbeddingClient) -> None:
    model = ServedModel(url)
    assert isinstance(model, EncoderProtocol)
    meta = model.mteb_model_meta
    assert (meta.name, meta.revision) == ("vlembed/random-tiny", client.info().fingerprint)
    assert meta.modalities == ["text", "image"]
    assert meta.experiment_kwargs is None
    smaller = ServedModel(url, dimensions=64, max_pixels=4096)
    assert smaller.mteb_model_meta.embed_dim == 64
    assert smaller.mteb_model_meta.experiment_kwargs == {"dimensions": 64, "max_pixels": 4096}  # another cache entry
    options: dict[str, Any] = {"task_metadata": LocalTextToImage.metadata, "hf_split": "test", "hf_subset": "default"}
    batches = [{"image": PICTURES[:2]}, {"image": PICTURES[2:]}]
    ours = smaller.encode(batches, prompt_type=PromptType.document, **options)
    theirs = client.embed(PICTURES, dimensions=64, max_pixels=4096).array
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_long_texts_are_cut(url: str, client: EmbeddingClient) -> None:
    text = "word " * 9000
    options: dict[str, Any] = {"task_metadata": LocalSTS.metadata, "hf_split": "test", "hf_subset": "default"}
    ours = ServedModel(url).encode([{"text": [text]}], prompt_type=PromptType.document, **options)
    np.testing.assert_allclose(ours, client.embed(text, truncate=True).array, atol=TOLERANCE)


def test_no_server() -> None:
    with pytest.raises(ConnectError):
        ServedModel("grpc://127.0.0.1:1")
