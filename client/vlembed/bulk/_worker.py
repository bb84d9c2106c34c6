"""Shards, from rows of the input to files of the output: what every engine runs.

Two runs of a shard do no harm: they overwrite nothing, and only the record that is yielded makes files count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._client import EmbeddingClient
from .._exceptions import ItemError
from .._items import Item, reference_in
from .._retry import Retry
from ._manifest import INPUT, Settings, ShardRecord, changed_model
from ._plan import Shard, read_rows
from ._rows import Columns, Failure, Row
from ._shards import EmbeddedRows, read_positions, write_failures

READY_TIMEOUT_S = 300.0  # a server that starts with a model of billions of parameters takes some minutes
RETRY = Retry(max_attempts=50, budget=1, reserve=1000)  # and a restart takes as long: 50 pauses of 5 s on average


@dataclass(frozen=True)
class Task:
    """A shard to embed or, if it is finished, its errors to embed again."""

    shard: Shard
    finished: ShardRecord | None = None

    @property
    def num_rows(self) -> int:
        """Return how many rows there are to embed."""
        if self.finished and self.finished["errors"]:
            return self.finished["errors"]["rows"]
        return self.shard.num_rows


@dataclass
class ShardInFlight:
    """A shard of which some rows are not back yet."""

    task: Task
    embedded: EmbeddedRows
    failures: list[Failure] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Tell whether every row is embedded or has failed."""
        return len(self.embedded) + len(self.failures) == self.task.num_rows


@dataclass(frozen=True)
class Worker:
    """Everything that embedding shards needs; travels between processes.

    Parameters
    ----------
    url, client_options
        Of the `EmbeddingClient`.
    root
        The folder that the names of the input's files are relative to.
    output
        The folder of the run, planned.
    settings
        Of the run.
    """

    url: str | Sequence[str]
    client_options: Mapping[str, Any]
    root: Path
    output: Path
    settings: Settings

    def run(
        self, tasks: Iterable[Task], advance: Callable[[int], object] = lambda num_rows: None
    ) -> Generator[ShardRecord, None, None]:
        """Embed shards as one stream, write the files of each, and yield what the manifest is to say of it.

        Parameters
        ----------
        tasks
            What to do, in order.
        advance
            Called with the number of rows that were done since the last call.

        Raises
        ------
        InvalidInputError
            The input or the server's model has changed.
        VlembedError
            Of another kind, if the server cannot be reached or the output cannot be written.
        """
        settings = self.settings
        shards = deque[ShardInFlight]()
        waiting = deque[tuple[ShardInFlight, Row | Failure]]()  # what the stream has read and not yielded

        def items() -> Generator[Item, None, None]:
            for task in tasks:
                shard = ShardInFlight(task, EmbeddedRows(task.num_rows, settings.dimensions, settings.dtype))
                shards.append(shard)
                for row in self._rows(task):
                    waiting.append((shard, row))
                    yield Item() if isinstance(row, Failure) else row.item  # an empty one comes back in its turn

        with self._connect() as client, closing(items()) as sent:
            for outcome in client.embed_many(
                sent,
                on_error="return",
                instruction=settings.instruction,
                dimensions=settings.dimensions,
                max_pixels=settings.max_pixels,
                truncate=settings.truncate,
                allow_reference_text=True,  # `_rows` has refused the others
            ):
                shard, row = waiting.popleft()
                if isinstance(row, Failure):
                    shard.failures.append(row)
                elif isinstance(outcome, ItemError):
                    shard.failures.append(Failure(row.position, row.id, row.place, outcome.code, outcome.message))
                else:
                    shard.embedded.add(row, outcome)
                advance(1)
                if shard.is_whole:
                    yield self._finish(shards.popleft())

    def _connect(self) -> EmbeddingClient:
        """Return a client of a server that is ready and has the model of the run."""
        client = EmbeddingClient(self.url, **{"retry": RETRY, **self.client_options})
        try:
            client.wait_until_ready(READY_TIMEOUT_S)
            if (fingerprint := client.info().fingerprint) != self.settings.fingerprint:
                raise changed_model(self.settings, fingerprint)
        except BaseException:
            client.close()
            raise
        return client

    def _rows(self, task: Task) -> Iterator[Row | Failure]:
        rows = map(
            self._without_reference,
            read_rows(self.root, self.output / INPUT, task.shard, Columns(**self.settings.columns)),
        )
        if not task.finished or not task.finished["errors"]:
            return rows
        failed = read_positions(self.output, task.finished["errors"])
        return (row for row in rows if row.position in failed)

    def _without_reference(self, row: Row | Failure) -> Row | Failure:
        if isinstance(row, Failure) or row.item.text is None or self.settings.allow_reference_text:
            return row
        if not (what := reference_in(row.item.text)):
            return row
        message = (
            f"the text {row.item.text.strip()[:60]!r} is {what}. If an image is meant, give its path in the column of "
            "images; if the string itself is, embed with --allow-reference-text (allow_reference_text=True)."
        )
        return Failure(row.position, row.id, row.place, "TEXT_IS_REFERENCE", message)

    def _finish(self, shard: ShardInFlight) -> ShardRecord:
        self._connect().close()  # a server may have been restarted with another model while the shard was embedded
        number, finished, about = shard.task.shard.number, shard.task.finished, asdict(self.settings)
        files = finished["files"] if finished else []
        if shard.embedded:
            files = [*files, shard.embedded.write(self.output, number, about)]
        errors = write_failures(self.output, number, shard.failures, about) if shard.failures else None
        codes = dict(Counter(failure.code for failure in shard.failures))
        return {"shard": number, "files": files, "errors": errors, "codes": codes}
