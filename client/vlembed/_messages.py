"""How values are shown in messages, which do not grow with them."""

from __future__ import annotations

MAX_LETTERS = 80


def shown(value: object) -> str:
    """Return the beginning of a value's repr, or its type if it has none."""
    try:
        text = repr(value)
    except Exception:  # of whatever class: an int of thousands of digits, a broken object
        return f"<{type_name(value)}>"
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}…"


def type_name(value: object) -> str:
    """Return the full name of a value's type."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
