"""The command `vlembed`, also `python -m vlembed`."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command with the arguments of this process, and exit."""
    _open_standard_streams()
    try:
        from .cli import vlembed
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("error: click is not installed. Install it with: pip install 'vlembed[cli]'", file=sys.stderr)
        sys.exit(2)
    vlembed.main(prog_name="vlembed")


def _open_standard_streams() -> None:
    """Put something in the place of those that are closed, or the next file to be opened would take it."""
    nothing = Path(os.devnull)
    sys.stdin = sys.stdin or nothing.open()
    sys.stdout = sys.stdout or nothing.open()  # which cannot be written: no result is lost without an error
    sys.stderr = sys.stderr or nothing.open("w")


if __name__ == "__main__":
    main()
