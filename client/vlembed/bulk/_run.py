"""A run from the beginning or from where the last one ended: plan, lock, embed shard by shard, commit each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from .._checks import flag, mapping, one_of, shown, whole_number
from .._client import EmbeddingClient
from .._exceptions import InvalidInputError
from .._extras import require
from .._files import TEMPORARY, place
from .._paths import local_path
from ._manifest import FOLDERS, INPUT, LOCK, MANIFEST, Manifest, Settings, create_manifest, locked, read_manifest
from ._plan import Input, Shard, read_plan, write_plan
from ._ray import run_on_ray
from ._report import Report, report_of
from ._rows import Columns
from ._shards import output_file
from ._worker import Task, Worker

SHARD_SIZE = 5_000

Dtype: TypeAlias = Literal["float32", "float16"]
Engine: TypeAlias = Literal["local", "ray"]


def embed_files(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    url: str | Sequence[str],
    client_options: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    shard_size: int = SHARD_SIZE,
    dtype: Dtype = "float32",
    dimensions: int | None = None,
    instruction: str | None = None,
    max_pixels: int | None = None,
    truncate: bool = False,
    allow_reference_text: bool = False,
    retry_errors: bool = False,
    engine: Engine = "local",
    num_workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Embed every row of files into Parquet files; the same call goes on with a run that ended early.

    A row is in the output once: in `shards/` with its vector, or in `errors/` with the reason. A run that was killed
    loses at most the shards that it was at work on. What is there is never mixed with vectors of another model, other
    options or a changed input.

    Parameters
    ----------
    inputs
        Files .jsonl, .csv, .tsv, .parquet, .tar (webdataset) and images, or folders of such, which are searched below,
        too: without side files (hidden ones, @eaDir, __MACOSX) and links to folders, every file once.
    output
        A folder, new or of an earlier run; with Ray, one that all machines share, as the input.
    url, client_options
        As for `EmbeddingClient`.
    columns
        Where tables have text, image, instruction and id; columns of these names by default.
    shard_size
        Rows of a shard: what is embedded again if a run is killed, and held in memory.
    dtype
        Of the vectors as they are stored.
    dimensions, instruction, max_pixels, truncate, allow_reference_text
        As for `EmbeddingClient.embed`.
    retry_errors
        Embed only the rows in `errors/` of a finished run again, for example after images were repaired.
    engine
        "local" embeds all shards in this process; "ray" several at once by Ray Data, on the cluster that Ray is
        connected to or on this machine.
    num_workers
        Shards at once with Ray; as many as it has CPUs by default.
    progress
        Show a bar of rows.

    Returns
    -------
    Report
        What the output holds now.

    Raises
    ------
    InvalidInputError
        A wrong argument, an input that cannot be read, or one, a model or options other than the run was begun with.
    OutputError
        The output cannot be written, or another run is at work on it. The same call goes on later.
    MissingExtraError
        pyarrow, or what `engine` or `progress` needs, is not installed.
    VlembedError
        Of another kind, if the server fails. The same call goes on later.
    """
    require("pyarrow", "bulk")  # before anything is embedded
    paths = [inputs] if isinstance(inputs, str | Path) else inputs
    source = Input([local_path(path, "input") for path in paths])
    output = Path(os.path.abspath(local_path(output, "output")))  # noqa: PTH100
    _check_arguments(source, output, dtype=dtype, instruction=instruction, engine=engine)
    shard_size = whole_number("shard_size", shard_size, 1)
    num_workers = None if num_workers is None else whole_number("num_workers", num_workers, 1)
    client_options = {} if client_options is None else mapping("client_options", client_options)
    truncate, retry_errors = flag("truncate", truncate), flag("retry_errors", retry_errors)
    progress, allow_reference_text = flag("progress", progress), flag("allow_reference_text", allow_reference_text)
    settings, checkpoint = _ask_model(
        EmbeddingClient(url, **client_options),
        dtype=dtype,
        dimensions=dimensions,
        instruction=instruction,
        max_pixels=max_pixels,
        truncate=truncate,
        allow_reference_text=allow_reference_text,
        columns=columns or Columns(),
        shard_size=shard_size,
    )
    with locked(output):
        if not (output / MANIFEST).exists():
            _begin(source, output, settings, checkpoint)
        manifest = read_manifest(output)
        manifest.check(settings)
        manifest.check_input_list()
        shards = read_plan(source, output / INPUT, shard_size, manifest.num_rows, images_may_differ=retry_errors)
        manifest.clean()
        tasks = _failed_tasks(manifest, shards) if retry_errors else _unfinished_tasks(manifest, shards)
        worker = Worker(url, client_options, source.root, output, settings)
        with _progress_bar(manifest, tasks, is_shown=progress) as advance:
            is_ray = engine == "ray"
            with closing(
                run_on_ray(worker, tasks, num_workers, advance) if is_ray else worker.run(tasks, advance)
            ) as records:
                for record in records:
                    manifest.append(record)
        manifest.clean()
    return report_of(manifest, ignored=dict(+source.ignored))


def _check_arguments(source: Input, output: Path, *, dtype: str, instruction: str | None, engine: str) -> None:
    for name, choice, choices in (("dtype", dtype, Dtype), ("engine", engine, Engine)):
        one_of(name, choice, get_args(choices))
    if instruction is not None and not isinstance(instruction, str):
        raise InvalidInputError(
            f"instruction is {shown(instruction)}. Pass a str, or leave it out for the model's default."
        )
    for path in source.paths:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise InvalidInputError(
                f"output {str(output)!r} is inside the input {str(path)!r}. Pass a folder beside it."
            )
    if output.exists() and not output.is_dir():
        raise InvalidInputError(f"output {str(output)!r} is a file. Pass a folder.")
    if output.exists() and not (output / MANIFEST).exists():
        ours = (INPUT, LOCK, *FOLDERS)
        if others := [path.name for path in output.iterdir() if path.name not in ours and path.suffix != TEMPORARY]:
            raise InvalidInputError(
                f"output {str(output)!r} has files of others ({sorted(others)[:3]}). Pass an empty folder."
            )


def _ask_model(
    client: EmbeddingClient, *, dtype: str, columns: Columns, shard_size: int, **options: Any
) -> tuple[Settings, str]:
    """Return the settings of a run, and the name of the checkpoint."""
    with client:
        info = client.info()
        dimensions = client.embed([], **options).array.shape[1]  # refuses wrong options
    options["dimensions"] = dimensions
    options["max_pixels"] = options["max_pixels"] and int(options["max_pixels"])  # numpy's are no JSON
    settings = Settings(
        fingerprint=info.fingerprint, dtype=dtype, columns=asdict(columns), shard_size=shard_size, **options
    )
    return settings, info.checkpoint


def _begin(source: Input, output: Path, settings: Settings, checkpoint: str) -> None:
    """Plan a new run; the manifest comes last, so that what is begun is planned."""
    with output_file(output) as temporary:
        num_rows, sha256 = write_plan(source, temporary, settings.shard_size, Columns(**settings.columns))
        place(temporary, output / INPUT)
    create_manifest(output, settings, checkpoint=checkpoint, input_sha256=sha256, num_rows=num_rows)


def _unfinished_tasks(manifest: Manifest, shards: Sequence[Shard]) -> list[Task]:
    return [Task(shard) for shard in shards if shard.number not in manifest.records]


def _failed_tasks(manifest: Manifest, shards: Sequence[Shard]) -> list[Task]:
    if not manifest.is_complete:
        raise InvalidInputError(
            f"only {len(manifest.records)} of {manifest.num_shards} shards of {str(manifest.output)!r} are finished. "
            "Finish the run without retry_errors first."
        )
    return [Task(shard, record) for shard in shards if (record := manifest.records[shard.number])["errors"]]


@contextmanager
def _progress_bar(manifest: Manifest, tasks: Sequence[Task], *, is_shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield what to call with the number of rows that were done."""
    if not is_shown:
        yield lambda num_rows: None
        return
    total, num_left = manifest.num_rows, sum(task.num_rows for task in tasks)
    with require("tqdm", "bulk").tqdm(total=total, initial=total - num_left, unit="row", smoothing=0.05) as bar:
        yield bar.update
