"""The help page of every command: `python -m tests.client.cli.help_pages > client/CLI.md` writes them down."""

from __future__ import annotations

from collections.abc import Iterator

import click

from vlembed.cli import vlembed

INTRODUCTION = """# The command `vlembed`

`pip install './client[cli]'` in a clone brings it, or `pip install 'vlembed[cli]'` where vlembed is installed. Results
go to stdout, notes and progress to stderr; an error is a line `error: ...` on stderr with the value, the rule and the
cure. What follows is `--help` of every command.
"""


def walk(context: click.Context | None = None) -> Iterator[click.Context]:
    """Yield a context of every command, groups before what is in them."""
    if context is None:
        context = click.Context(vlembed, info_name="vlembed", **vlembed.context_settings)
    yield context
    if isinstance(context.command, click.Group):
        for name, command in sorted(context.command.commands.items()):
            yield from walk(click.Context(command, context, name))


def write() -> str:
    """Return the document."""
    pages = (f"## {context.command_path}\n\n```\n{context.get_help()}\n```\n" for context in walk())
    return "\n".join([INTRODUCTION, *pages])


if __name__ == "__main__":
    print(write(), end="")
