"""The command `vlembed`: a module per subcommand, thin over what the package offers in Python.

Results go to stdout and notes to stderr, so that commands can be joined by pipes.
"""

from __future__ import annotations

import click

from .. import __version__
from ._root import HELP_WIDTH, SUBCOMMAND, Root
from .bulk import bulk
from .embed import embed
from .index import index
from .info import info
from .search import search
from .similarity import similarity


@click.group(
    cls=Root,
    invoke_without_command=True,
    subcommand_metavar=SUBCOMMAND,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": HELP_WIDTH},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def vlembed(context: click.Context) -> None:
    """Embed, compare and search texts and images with a vlembed server.

    \b
    Exit status
      0    done
      1    the server or the machine failed, or no item could be indexed
      2    wrong usage, bad input, or a library is missing
      3    some items failed; the others are done
      130  interrupted
      141  what read the output went away
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (embed, similarity, index, search, bulk, info):
    vlembed.add_command(command)
