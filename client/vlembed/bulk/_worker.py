"""One shard, from rows of the input to files of the output: what every engine runs.

Two runs of it do no harm: it overwrites nothing, and only the record that it returns makes its files count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._client import EmbeddingClient
from .._exceptions import ItemError
from .._items import Item
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


@dataclass(frozen=True)
class Worker:
    """Everything that a shard needs; travels between processes.

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

    def run(self, task: Task, advance: Callable[[int], object] = lambda num_rows: None) -> ShardRecord:
        """Embed a shard, write its files, and return what the manifest is to say of it.

        Parameters
        ----------
        task
            What to do.
        advance
            Called with the number of rows that were done since the last call.

        Raises
        ------
        InvalidInputError
            The input or the server's model has changed.
        VlembedError
            Of another kind, if the server cannot be reached or the output cannot be written.
        """
        rows = read_rows(self.root, self.output / INPUT, task.shard, Columns(**self.settings.columns))
        files = []
        if task.finished and task.finished["errors"]:
            files = task.finished["files"]
            wanted = read_positions(self.output, task.finished["errors"])
            rows = (row for row in rows if row.position in wanted)
        done, failures = self._embed(rows, task.num_rows, advance)
        about = asdict(self.settings)
        if done:
            files = [*files, done.write(self.output, task.shard.number, about)]
        errors = write_failures(self.output, task.shard.number, failures, about) if failures else None
        codes = dict(Counter(failure.code for failure in failures))
        return {"shard": task.shard.number, "files": files, "errors": errors, "codes": codes}

    def connect(self) -> EmbeddingClient:
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

    def _embed(
        self, rows: Iterable[Row | Failure], max_rows: int, advance: Callable[[int], object]
    ) -> tuple[EmbeddedRows, list[Failure]]:
        settings = self.settings
        done, failures = EmbeddedRows(max_rows, settings.dimensions, settings.dtype), list[Failure]()
        waiting = deque[Row]()  # those that were sent and are not back

        def items() -> Iterator[Item]:
            for row in rows:
                if isinstance(row, Failure):
                    failures.append(row)
                    advance(1)
                else:
                    waiting.append(row)
                    yield row.item

        with self.connect() as client:
            for outcome in client.embed_many(
                items(),
                on_error="return",
                instruction=settings.instruction,
                dimensions=settings.dimensions,
                max_pixels=settings.max_pixels,
                truncate=settings.truncate,
                allow_reference_text=settings.allow_reference_text,
            ):
                row = waiting.popleft()
                if isinstance(outcome, ItemError):
                    failures.append(Failure(row.position, row.id, row.place, outcome.code, outcome.message))
                else:
                    done.add(row, outcome)
                advance(1)
        self.connect().close()  # the model is the same at the end: a server may have been restarted with another
        return done, sorted(failures, key=lambda failure: failure.position)
