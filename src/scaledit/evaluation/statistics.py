"""Mean and covariance of features, streamed in float64.

    mean = (1/n) sum f_i        cov = (1/(n-1)) sum (f_i - mean)(f_i - mean)^T

Two blocks merge exactly (Chan, Golub & LeVeque 1979), with d = mean_b - mean_a and n = n_a + n_b:

    mean = mean_a + (n_b/n) d        scatter = scatter_a + scatter_b + (n_a n_b / n) d d^T
"""

from __future__ import annotations

from typing import NamedTuple

from scaledit.errors import UsageError
from scaledit.lazy import np

ROWS = 1024
"""Rows of a block, whose scatter matrix is added at once: one large product instead of many small ones."""


class Statistics(NamedTuple):
    """mean (D,) and cov (D, D) float64, cov divided by n - 1. n: number of features; None if unknown (ADM's
    references do not store it)."""

    mean: np.ndarray
    cov: np.ndarray
    n: int | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        """The statistics of (N, D) features. Raises UsageError as `Accumulator` does."""
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
        """Adds (N, D) features of any float type. Raises UsageError if one is not finite."""
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
            block = rows[first : first + ROWS]
            mean = block.mean(axis=0)
            centered = block - mean
            scatter = centered.T @ centered
            if self.n == 0:
                self.n, self.mean, self.scatter = len(block), mean, scatter
                continue
            if mean.shape != self.mean.shape:
                raise UsageError(
                    f"the features have {len(mean)} dimensions, but earlier ones had {len(self.mean)}"
                )
            total, difference = self.n + len(block), mean - self.mean
            self.scatter += scatter
            self.scatter += np.outer(difference, difference) * (self.n * len(block) / total)
            self.mean = self.mean + difference * (len(block) / total)
            self.n = total

    def result(self) -> Statistics:
        """Raises UsageError for fewer than two features, which have no covariance."""
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
            f"{len(features)} samples); the weights of the extractor or the images are corrupt"
        )
