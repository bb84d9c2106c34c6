"""The entry of `python -m finetune`: Ctrl-C ends it from the first second on, while `finetune.command` still loads."""

from __future__ import annotations

from finetune.interrupts import interruptible


def main() -> None:
    """Load the command, which takes seconds, and run it."""
    with interruptible(lambda: "nothing was written."):
        from finetune.command import run

        run()


if __name__ == "__main__":
    main()
