"""The type of arguments that name a file or a folder of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .._exceptions import InvalidInputError
from .._paths import local_path


class LocalPath(click.Path):
    """A `Path`; a URL is refused, which would otherwise become a folder of that name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check and convert an argument."""
        try:
            local_path(value, "it")
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)
