"""How far a stream is, shown on stderr by tqdm."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing

from ._exceptions import ItemError
from ._extras import require
from ._request import Outcome


def with_progress(outcomes: Generator[Outcome, None, None], total: int | None) -> Generator[Outcome, None, None]:
    """Yield the same, and show items/s, tokens/s, errors and, where the total is known, the time left.

    Raises
    ------
    MissingExtraError
        tqdm is not installed.
    """
    tqdm = require("tqdm", "bulk").tqdm

    def shown() -> Generator[Outcome, None, None]:
        num_tokens = num_errors = 0
        began_at = time.monotonic()
        with closing(outcomes), tqdm(total=total, unit=" items", unit_scale=True, dynamic_ncols=True) as bar:
            for outcome in outcomes:
                if isinstance(outcome, ItemError):
                    num_errors += 1
                else:
                    num_tokens += outcome.text_tokens + outcome.image_tokens
                per_second = num_tokens / max(time.monotonic() - began_at, 1e-3)
                bar.set_postfix_str(f"{per_second:,.0f} tokens/s, {num_errors} errors", refresh=False)
                bar.update()
                yield outcome

    return shown()
