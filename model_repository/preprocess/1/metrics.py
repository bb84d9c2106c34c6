"""What `preprocess` counts, beside Triton's own metrics: counters that every process of the step adds to."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class Counters:
    """Prometheus counters, named `vlembed_preprocess_*`, on the server's metrics endpoint."""

    def __init__(self) -> None:
        self._items = Counter("items_total", "Items that were prepared")
        self._tokens = Counter(
            "tokens_total", "Tokens of the items that were prepared, by kind: text or visual", "kind"
        )
        self._images = Counter("images_total", "Images that were decoded, by format", "format")
        self._decoding = Counter(
            "image_seconds_total", "Processor seconds of decoding, resizing and cutting images, by format", "format"
        )
        self._refusals = Counter("refusals_total", "Requests that were refused, by code", "code")
        self._dropped = Counter("dropped_total", "Requests that were dropped because their caller had gone")

    def add_pack(self, num_text_tokens: Any, num_image_tokens: Any) -> None:
        """Count a pack that was prepared, from the tokens of each item."""
        self._items.add(len(num_text_tokens))
        self._tokens.add(int(num_text_tokens.sum()), "text")
        self._tokens.add(int(num_image_tokens.sum()), "visual")

    def add_image(self, kind: str, seconds: float) -> None:
        """Count an image that was decoded."""
        self._images.add(1, kind)
        self._decoding.add(seconds, kind)

    def add_refusal(self, codes: set[str]) -> None:
        """Count a request that was refused, once for each code among its errors."""
        for code in codes:
            self._refusals.add(1, code)

    def add_drop(self) -> None:
        """Count a request whose caller had gone."""
        self._dropped.add(1)


class Counter:
    """A counter, or one for each value of a label. Values come from fixed sets, never from a request."""

    def __init__(self, name: str, description: str, label: str = "") -> None:
        self._family = pb_utils.MetricFamily(
            name=f"vlembed_preprocess_{name}", description=description, kind=pb_utils.MetricFamily.COUNTER
        )
        self._label = label
        self._metrics: dict[str, Any] = {}

    def add(self, amount: float, value: str = "") -> None:
        """Add to the counter of a label's value."""
        if value not in self._metrics:
            self._metrics[value] = self._family.Metric(labels={self._label: value} if self._label else {})
        self._metrics[value].increment(amount)
