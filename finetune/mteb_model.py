"""A running server as a model of mteb, for its tasks of text, images, and text with images.

    import mteb
    from finetune.mteb_model import ServedModel

    tasks = mteb.get_tasks(tasks=["STSBenchmark", "XFlickr30kCoT2IRetrieval"])
    mteb.evaluate(ServedModel("grpc://127.0.0.1:8001"), tasks)

Queries, and the items of tasks that have no queries, are embedded under the task's instruction; documents under the
model's default one. Texts over the server's bound are cut, as is usual in mteb.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType

from finetune.served import TIMEOUT_S, ServedEncoder
from vlembed import ServerInfo


class ServedModel(AbsEncoder):
    """What a server makes of mteb's batches; see `mteb.models.EncoderProtocol`.

    Parameters
    ----------
    url
        As for `vlembed.EmbeddingClient`.
    dimensions
        A Matryoshka size; left out, all.
    max_pixels
        What images are scaled down to at most; left out, the server's bound.
    timeout_s
        Of one request.

    Raises
    ------
    VlembedError
        The URL is wrong or the server cannot be reached.
    """

    mteb_model_meta: ModelMeta  # never None, as it may be in general

    def __init__(
        self,
        url: str,
        *,
        dimensions: int | None = None,
        max_pixels: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.dimensions = dimensions
        self._encoder = ServedEncoder(url, max_pixels=max_pixels, timeout_s=timeout_s)
        settings = {"dimensions": dimensions, "max_pixels": max_pixels}
        self.mteb_model_meta = _meta(self._encoder.info, {key: value for key, value in settings.items() if value})

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> npt.NDArray[np.float32]:
        """Embed the n items of all batches.

        Parameters
        ----------
        inputs
            Batches with columns `text`, `image` (PIL) or both.
        task_metadata, prompt_type
            Which task and which side of it: they decide the instruction.
        hf_split, hf_subset
            Not used.

        Returns
        -------
        numpy.ndarray
            float32 (n, d), of unit norm.
        """
        is_document = prompt_type == PromptType.document
        instruction = "" if is_document else self.get_task_instruction(task_metadata, prompt_type)
        return self._encoder.encode(_sides(inputs, instruction), dimensions=self.dimensions, truncate=True)


def _sides(batches: Iterable[Mapping[str, Any]], instruction: str) -> Iterator[dict[str, Any]]:
    for batch in batches:
        columns = {name: batch[name] for name in ("text", "image") if name in batch}
        for values in zip(*columns.values(), strict=True):
            yield {"instruction": instruction, **dict(zip(columns, values, strict=True))}


def _meta(info: ServerInfo, settings: dict[str, int]) -> ModelMeta:
    """Say what is served; mteb caches results by name, revision and settings."""
    told = {
        "name": info.checkpoint if "/" in info.checkpoint else f"vlembed/{info.checkpoint}",
        "revision": info.fingerprint,
        "embed_dim": settings.get("dimensions", info.dimensions),
        "max_tokens": info.bounds["max_tokens"],
        "modalities": ["text", "image"],
        "framework": ["API"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": True,
        "experiment_kwargs": settings or None,
    }
    meta: ModelMeta = ModelMeta.create_empty(told)
    return meta
