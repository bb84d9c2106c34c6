"""How the command ends: every failure is lines of `error: ...` on stderr and an exit status."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from .._exceptions import InvalidInputError, MissingExtraError, VlembedError

CURES = {  # of Python, and how this command spells them
    r"ask for truncation \(truncate\)": "give --truncate",
    r"pass a client, or dimensions and a fingerprint": "use `vlembed index create`",
    r"with Columns\.": "with --column.",
    r"without retry_errors": "without --retry-errors",
}
MAX_TOLD = 20  # lines of errors where nothing is done
SUBCOMMAND = "COMMAND [ARGS]..."  # in help; click's own differs between versions
HELP_WIDTH = 100  # columns, of whatever terminal: client/CLI.md holds the pages as they are
FAILED, REFUSED, INCOMPLETE, INTERRUPTED, READER_LEFT = 1, 2, 3, 130, 141  # the last two as a shell tells of a signal


class InputError(click.ClickException):
    """What was given is wrong, and all of it is refused; a line for each thing that is, as far as people read."""

    exit_code = REFUSED

    def __init__(self, *messages: str) -> None:
        if len(messages) > MAX_TOLD:
            messages = (*messages[:MAX_TOLD], f"and {len(messages) - MAX_TOLD} more")
        super().__init__("\n".join(" ".join(message.split("\n")) for message in messages))


class Root(click.Group):
    """A group whose errors are lines and an exit status; a subcommand may return a status of its own."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit."""
        sys.exit(self._run(*args, **kwargs | {"standalone_mode": False}))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options of the root; --help and --version write."""
        with _reader_may_leave():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the rest, and run the subcommand."""
        with _reader_may_leave():
            return super().invoke(ctx)

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            return super().main(*args, **kwargs) or 0
        except click.Abort:
            return INTERRUPTED
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "vlembed"
            print_errors([f"{error.format_message()} See `{command} --help`."])
            return error.exit_code
        except click.ClickException as error:
            print_errors(error.format_message().split("\n"))
            return error.exit_code
        except (VlembedError, OSError) as error:
            if isinstance(error, OSError):
                _write_no_more()
            print_errors([str(error)])
            return REFUSED if isinstance(error, InvalidInputError | MissingExtraError) else FAILED


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Leave quietly when nobody reads the output any more."""
    try:
        yield
    except BrokenPipeError:
        _write_no_more()
        raise click.exceptions.Exit(READER_LEFT) from None


def _write_no_more() -> None:
    """Leave nothing to Python, which flushes standard output at its end, and would fail again."""
    sys.stdout = io.StringIO()


def print_errors(messages: Sequence[str]) -> None:
    """Print a line for each; cures that name Python's arguments name the options instead."""
    for message in messages:
        line = " ".join(message.split("\n"))
        for theirs, ours in CURES.items():
            line = re.sub(theirs, ours, line)
        click.echo(f"error: {line}", err=True)
