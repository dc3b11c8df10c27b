"""Mean and covariance of features, streamed in float64, merged across parts, kept in ADM's files.

    mean = (1/n) sum f_i        cov = (1/(n-1)) sum (f_i - mean)(f_i - mean)^T

Two parts merge exactly (Chan, Golub & LeVeque 1979), with d = mean_b - mean_a and n = n_a + n_b:

    mean = mean_a + (n_b/n) d        scatter = scatter_a + scatter_b + (n_a n_b / n) d d^T
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scaledit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
else:
    from scaledit.lazy import np

ROWS = 1024
"""Rows that are gathered before their scatter matrix is added: one large product instead of many small."""


class Statistics(NamedTuple):
    """mean (D,) and cov (D, D) float64, cov divided by n - 1. n: how many features; None where a file does
    not say (ADM's references do not)."""

    mean: np.ndarray
    cov: np.ndarray
    n: int | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        """The statistics of (N, D) features. Raises UsageError as `Accumulator.add` and `.result` do."""
        accumulator = Accumulator()
        for first in range(0, len(features), ROWS):
            accumulator.add(features[first : first + ROWS])
        return accumulator.result()


class Accumulator:
    """Streams features; holds one (D, D) float64 matrix whatever their number."""

    def __init__(self) -> None:
        self.n = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))
        self.waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """Takes (N, D) features of any float type. Raises UsageError if one of them is not finite."""
        check_features(features)
        self.waiting.append(np.asarray(features, dtype=np.float64))
        if sum(map(len, self.waiting)) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        rows = np.concatenate(self.waiting)
        self.waiting = []
        for first in range(0, len(rows), ROWS):
            part = rows[first : first + ROWS]
            mean = part.mean(axis=0)
            centred = part - mean
            self._merge(len(part), mean, centred.T @ centred)

    def _merge(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if n == 0:
            return
        if self.n == 0:
            self.n, self.mean, self.scatter = n, mean, scatter
            return
        if mean.shape != self.mean.shape:
            raise UsageError(f"features have {len(mean)} dimensions, those before had {len(self.mean)}")
        total, difference = self.n + n, mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(difference, difference) * (self.n * n / total)
        self.mean = self.mean + difference * (n / total)
        self.n = total

    def merge(self, other: Accumulator) -> None:
        """Takes what `other` has seen."""
        self._flush()
        other._flush()
        self._merge(other.n, other.mean, other.scatter)

    def result(self) -> Statistics:
        """Raises UsageError for fewer than two features: they have no covariance."""
        self._flush()
        if self.n < 2:
            raise UsageError(f"a covariance needs at least two samples, got {self.n}")
        return Statistics(self.mean.copy(), self.scatter / (self.n - 1), self.n)


def check_features(features: np.ndarray) -> None:
    """Raises UsageError unless `features` is (N, D) and finite."""
    if features.ndim != 2:
        raise UsageError(f"features must be (N, D), got the shape {features.shape}")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UsageError(
            f"the features of sample {int(np.argmin(finite))} are not finite ({int((~finite).sum())} of "
            f"{len(features)} samples); the extractor's weights or the images are bad"
        )
