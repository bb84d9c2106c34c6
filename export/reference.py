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

from .errors import DisagreementError, ExportError

Array = npt.NDArray[Any]
Request = dict[str, Array]  # the tensors of one pack, by name


class RunsRequests(Protocol):
    """A tower, whatever runs it."""

    def run(self, requests: list[Request]) -> Array:
        """Run one dynamic batch, the requests laid end to end."""
        ...


class Tolerance(Protocol):
    """Cosines below which a tower is refused."""

    @property
    def min_cosine(self) -> float:
        """Of the worst row to its reference."""

    @property
    def mean_cosine(self) -> float:
        """Of all rows to their reference, on average."""

    @property
    def min_alone(self) -> float:
        """Of a row of a request alone to the same row in a batch."""


@dataclass(frozen=True)
class Cosines:
    """A tolerance that was read from a file."""

    min_cosine: float
    mean_cosine: float
    min_alone: float


@dataclass(frozen=True)
class Reference:
    """Requests to a tower, and what transformers answers."""

    requests: list[Request]
    rows: npt.NDArray[np.int64]  # (n,) of the output for all of them in one batch: the ones that are compared
    expected: npt.NDArray[np.float32]  # (n, D)
    falsified: str  # an input that contradicts the others when a number is added

    def check(self, name: str, tower: RunsRequests, tolerance: Tolerance) -> tuple[dict[str, float], Array]:
        """Hold a tower to the reference: all requests in one batch, each alone, and in bad company.

        Returns
        -------
        report : dict
            The smallest cosines, by what was compared.
        rows : numpy.ndarray, float32, shape = (n, D)
            What the tower answers to all requests in one batch.

        Raises
        ------
        ExportError
            A shape or a value disagrees.
        """
        together = tower.run(self.requests)
        report = agree(name, together[self.rows], self.expected, tolerance)
        alone = np.concatenate([tower.run([request]) for request in self.requests])
        same = Cosines(tolerance.min_alone, tolerance.min_alone, tolerance.min_alone)
        report |= agree(f"{name} alone", alone[self.rows], together[self.rows], same)
        self._check_guards(name, tower, together, tolerance.min_alone)
        return report, together[self.rows]

    def _check_guards(self, name: str, tower: RunsRequests, expected: Array, min_cosine: float) -> None:
        """Hold the tower to what it promises about bad requests.

        A request that contradicts itself gets NaN, and the others stay as they were. A request without elements in an
        input makes all of its batch NaN.
        """
        honest = self.requests[0]
        bad = {**honest, self.falsified: honest[self.falsified] + 2}
        output = tower.run([bad, *self.requests])
        num_bad = len(output) - len(expected)
        distance = np.linalg.norm(output[num_bad:] - expected, axis=1)
        allowed = (2 * (1 - min_cosine)) ** 0.5 * np.linalg.norm(expected, axis=1) + 1e-3  # a sentinel's row may be 0
        if not np.isnan(output[:num_bad]).all() or not (distance <= allowed).all():
            raise ExportError(
                f"{name}: a request with wrong {self.falsified} is not answered with NaN, or harms its neighbours."
            )
        for empty in honest:
            bad = {**honest, empty: honest[empty][:0]}
            if not all(np.isnan(tower.run(batch)).all() for batch in ([bad, honest], [honest, bad])):
                raise ExportError(f"{name}: a batch in which a request has no {empty} is not answered with NaN alone.")

    def save(self, path: Path, tolerance: Tolerance) -> None:
        """Write the reference to an npz file."""
        np.savez(
            path,
            **lay_out(self.requests),
            **{_shape(name): np.array(values.shape[1:]) for name, values in self.requests[0].items()},
            rows=self.rows,
            expected=self.expected,
            falsified=np.array(self.falsified),
            tolerance=np.array([tolerance.min_cosine, tolerance.mean_cosine, tolerance.min_alone]),
        )

    @staticmethod
    def load(path: Path) -> tuple[Reference, Tolerance]:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        names = [name for name in arrays if f"{name}_offsets" in arrays]
        parts = {name: np.split(arrays[name], arrays[f"{name}_offsets"][1:-1]) for name in names}
        requests = [
            {name: parts[name][index].reshape(-1, *arrays[_shape(name)]) for name in names}
            for index in range(len(parts[names[0]]))
        ]
        reference = Reference(requests, arrays["rows"], arrays["expected"], str(arrays["falsified"]))
        return reference, Cosines(*arrays["tolerance"].tolist())


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


def agree(name: str, ours: Array, theirs: Array, tolerance: Tolerance) -> dict[str, float]:
    """Return the smallest cosine between rows and, of integers, the mean.

    Raises
    ------
    DisagreementError
        One is too small for the tolerance.
    """
    if ours.shape != theirs.shape:
        raise ExportError(f"{name}: shape {ours.shape}, the reference has {theirs.shape}. The export is not placed.")
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / norms
    report = {name: float(cosines.min())}
    bounds = {name: tolerance.min_cosine}
    if tolerance.mean_cosine != tolerance.min_cosine:
        report[f"{name}, mean"], bounds[f"{name}, mean"] = float(cosines.mean()), tolerance.mean_cosine
    for what, cosine in report.items():
        if not cosine >= bounds[what]:
            raise DisagreementError(
                f"{what}: cosine {cosine:.6f} to the reference, at least {bounds[what]} is needed. Not placed."
            )
    return report
