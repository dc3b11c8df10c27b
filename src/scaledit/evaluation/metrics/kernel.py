"""The kernel distance (Binkowski et al. 2018), called KID on Inception's features.

KID = MMD^2 with the kernel (x.y / D + 1)^3, unbiased, averaged over random subsets
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.errors import UsageError
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.metric import Column, Metric, MetricContext
from scaledit.evaluation.statistics import check_features
from scaledit.lazy import np
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference


@dataclass(frozen=True)
class KernelDistance(Metric, name="kernel"):
    """The unbiased kernel distance, for few samples in many dimensions, and its spread over subsets."""

    of_reference = ("pool",)
    order = 30

    subsets: int = field(100, ge=1, doc="number of random subsets over which the distance is averaged")
    subset_size: int = field(1000, ge=2, doc="features per subset, at most all of them")
    seed: int = field(0, ge=0, doc="seed of the subsets")

    def columns(self, extractor: Extractor) -> tuple[Column, ...]:
        main = self.column("", extractor.distance("K"))
        spread = self.column(f"{main.key}_spread", f"{main.title}, sd of subsets", aside=True)
        return main, spread

    def by_default(self, extractor: Extractor) -> bool:
        return not extractor.small  # which has few dimensions

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> Spread:
        assert reference.pool is not None
        return kid(reference.pool, samples.pool, self.subsets, self.subset_size, self.seed)


class Spread(NamedTuple):
    """A mean and the standard deviation of the averaged values."""

    mean: float
    std: float


def kid(
    reference: np.ndarray, samples: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Spread:
    """The kernel distance: its mean over random subsets and its standard deviation between them.

    Unbiased, so it may be slightly negative for equal sets, and needs no large N. Each subset holds
    min(subset_size, N_reference, N_samples) features, drawn with `seed` without replacement. Raises
    UsageError for fewer than two samples or reference images, or features that are not finite.
    """
    check_features(reference)
    check_features(samples)
    size = min(subset_size, len(reference), len(samples))
    if size < 2:
        raise UsageError("the kernel distance needs at least two samples and two reference images")
    rng = np.random.default_rng(seed)
    values = [
        _mmd2(
            reference[rng.choice(len(reference), size, replace=False)].astype(np.float64),
            samples[rng.choice(len(samples), size, replace=False)].astype(np.float64),
        )
        for _ in range(subsets)
    ]
    return Spread(float(np.mean(values)), float(np.std(values)))


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of two sets of equal size."""
    n, dimension = x.shape
    k_xx, k_yy, k_xy = ((u @ v.T / dimension + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))
    within = k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)
    return float(within / (n * (n - 1)) - 2 * k_xy.mean())
