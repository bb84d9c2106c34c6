"""The command `vlembed`, also `python -m vlembed`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command with the arguments of this process, and exit."""
    try:
        from .cli import vlembed
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("error: click is not installed. Install it with: pip install 'vlembed[cli]'", file=sys.stderr)
        sys.exit(2)
    vlembed.main(prog_name="vlembed")


if __name__ == "__main__":
    main()
