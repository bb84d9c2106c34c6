"""Requests to a tower and what transformers answers: with these, any rendering of the tower is checked anywhere.

Knows arrays alone, and neither torch nor what runs a tower: export checks its graphs with it, and leaves it in the
repository for the engines that are built later, on another machine.

Letters: n rows of output that have a reference, D size of a row, R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import ExportError

Array = npt.NDArray[Any]
Request = dict[str, Array]  # the tensors of one pack, by name


class RunsRequests(Protocol):
    """A tower, whatever runs it."""

    def run(self, requests: list[Request]) -> Array:
        """Run one dynamic batch, the requests laid end to end."""
        ...


@dataclass(frozen=True)
class Reference:
    """Requests to a tower, and what transformers answers."""

    requests: list[Request]
    rows: npt.NDArray[np.int64]  # (n,) of the output for all requests: those that `expected` has
    expected: npt.NDArray[np.float32]  # (n, D)
    falsified: str  # an input that contradicts the others when a number is added
    min_cosine: float  # between `expected` and what is right in the tower's precision

    def check(self, name: str, tower: RunsRequests) -> dict[str, float]:
        """Hold a tower to the reference: all requests in one batch, each alone, and in bad company.

        Returns
        -------
        dict
            The smallest cosines, by what was compared.

        Raises
        ------
        ExportError
            A shape or a value disagrees.
        """
        together = tower.run(self.requests)
        report = {name: agree(name, together[self.rows], self.expected, self.min_cosine)}
        alone = np.concatenate([tower.run([request]) for request in self.requests])
        report[f"{name} alone"] = agree(f"{name} alone", alone[self.rows], together[self.rows], self.min_cosine)
        self._check_guards(name, tower, together)
        return report

    def _check_guards(self, name: str, tower: RunsRequests, expected: Array) -> None:
        """Hold the tower to what it promises about bad requests.

        A request that contradicts itself gets NaN, and the others stay as they were. A request without elements in an
        input makes all of its batch NaN.
        """
        honest = self.requests[0]
        bad = {**honest, self.falsified: honest[self.falsified] + 2}
        output = tower.run([bad, *self.requests])
        num_bad = len(output) - len(expected)
        distance = np.linalg.norm(output[num_bad:] - expected, axis=1)
        allowed = (2 * (1 - self.min_cosine)) ** 0.5 * np.linalg.norm(expected, axis=1) + 1e-3  # a sentinel's may be 0
        if not np.isnan(output[:num_bad]).all() or not (distance <= allowed).all():
            raise ExportError(
                f"{name}: a request with wrong {self.falsified} is not answered with NaN, or harms its neighbours."
            )
        for empty in honest:
            bad = {**honest, empty: honest[empty][:0]}
            if not all(np.isnan(tower.run(batch)).all() for batch in ([bad, honest], [honest, bad])):
                raise ExportError(f"{name}: a batch in which a request has no {empty} is not answered with NaN alone.")

    def save(self, path: Path) -> None:
        """Write the reference to an npz file."""
        np.savez(
            path,
            **lay_out(self.requests),
            **{_shape(name): np.array(values.shape[1:]) for name, values in self.requests[0].items()},
            rows=self.rows,
            expected=self.expected,
            falsified=np.array(self.falsified),
            min_cosine=np.array(self.min_cosine),
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        names = [name for name in arrays if f"{name}_offsets" in arrays]
        parts = {name: np.split(arrays[name], arrays[f"{name}_offsets"][1:-1]) for name in names}
        requests = [
            {name: parts[name][index].reshape(-1, *arrays[_shape(name)]) for name in names}
            for index in range(len(parts[names[0]]))
        ]
        return cls(
            requests,
            arrays["rows"],
            arrays["expected"],
            str(arrays["falsified"]),
            float(arrays["min_cosine"]),
        )


def _shape(name: str) -> str:
    return f"{name}_row_shape"


def lay_out(requests: Sequence[Request]) -> Request:
    """Lay requests end to end, with the offsets that the server adds."""
    feed: Request = {}
    for name in requests[0]:
        parts = [request[name].reshape(-1) for request in requests]
        feed[name] = np.concatenate(parts)
        feed[f"{name}_offsets"] = np.cumsum([0, *(part.size for part in parts)], dtype=np.int32)
    return feed


def agree(name: str, ours: Array, theirs: Array, min_cosine: float) -> float:
    """Return the smallest cosine between rows, or refuse."""
    if ours.shape != theirs.shape:
        raise ExportError(f"{name}: shape {ours.shape}, the reference has {theirs.shape}. Not placed.")
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(axis=1) / norms).min())
    if not cosine >= min_cosine:
        raise ExportError(f"{name}: cosine {cosine:.6f} to the reference, at least {min_cosine} is needed. Not placed.")
    return cosine
