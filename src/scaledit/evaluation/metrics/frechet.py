"""The Fréchet distance between Gaussians fitted to features (Dowson & Landau 1982, Heusel et al. 2017).

    FD(a, b) = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)
    FD_inf   = the intercept of FD(N) over 1/N                            Chong & Forsyth 2020

It is called FID on Inception's pool_3, sFID on its spatial features (Nash et al. 2021), FD-SUFFIX elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.errors import UsageError
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.metric import Column, Metric, MetricContext
from scaledit.evaluation.statistics import Statistics, check_features
from scaledit.lazy import np
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference


@dataclass(frozen=True)
class FrechetDistance(Metric, name="frechet"):
    """The Fréchet distance on the pooled features: FID, FD-DINOv2, FD-digits."""

    of_reference = ("statistics",)
    order = 0

    def columns(self, extractor: Extractor) -> tuple[Column, ...]:
        return (self.column("", extractor.distance("F"), about=extractor.about),)

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert reference.statistics is not None
        return frechet_distance(reference.statistics, samples.pool)


@dataclass(frozen=True)
class FrechetInfinity(Metric, name="frechet_infinity"):
    """The Fréchet distance extrapolated to infinitely many samples."""

    of_reference = ("statistics",)
    by_request = True
    order = 1

    points: int = field(15, ge=3, doc="number of subsets, of N/10 to N samples")
    seed: int = field(0, ge=0, doc="seed of the subsets")

    def columns(self, extractor: Extractor) -> tuple[Column, ...]:
        return (self.column("", f"{extractor.distance('F')}-infinity"),)

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert reference.statistics is not None
        return frechet_distance_infinity(reference.statistics, samples.pool, self.points, self.seed).value


@dataclass(frozen=True)
class SpatialFrechetDistance(Metric, name="spatial_frechet"):
    """The Fréchet distance on features that keep their positions in the image: sFID."""

    reads = ("spatial",)
    of_reference = ("spatial",)
    brief = True
    order = 2

    def columns(self, extractor: Extractor) -> tuple[Column, ...]:
        return (self.column("", f"s{extractor.distance('F')}"),)

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert reference.spatial is not None and samples.spatial is not None
        return frechet_distance(reference.spatial, samples.spatial)


class Extrapolated(NamedTuple):
    """value: the distance at N -> infinity. slope: of the distance over 1/N. residual: root mean square of
    the fit's residuals, in the unit of the distance."""

    value: float
    slope: float
    residual: float


def frechet_distance(a: np.ndarray | Statistics, b: np.ndarray | Statistics) -> float:
    """The squared Fréchet distance between Gaussians fitted to a and b: (N, D) features, or Statistics.

    Computed in float64. With C_b = F_b^T F_b, the eigenvalues of C_a C_b are those of the symmetric
    F_b C_a F_b^T, whose roots need neither complex numbers nor an offset. If a set has fewer features than
    dimensions, F_b is its centered rows, and the problem shrinks to N x N.

    Raises UsageError for fewer than two samples, features that are not finite, or different dimensions.
    """
    mean_a, mean_b = _mean(a), _mean(b)
    if mean_a.shape != mean_b.shape:
        raise UsageError(f"features of {len(mean_a)} and {len(mean_b)} dimensions cannot be compared")
    difference = mean_a - mean_b
    trace, overlap = _covariances(a, b)
    return float(difference @ difference + trace - 2 * overlap)


def _mean(x: np.ndarray | Statistics) -> np.ndarray:
    if isinstance(x, Statistics):
        return x.mean
    check_features(x)
    if len(x) < 2:
        raise UsageError(f"a covariance needs at least two samples, got {len(x)}")
    return x.mean(axis=0, dtype=np.float64)


def _covariances(a: np.ndarray | Statistics, b: np.ndarray | Statistics) -> tuple[float, float]:
    """tr C_a + tr C_b, and tr (C_a C_b)^(1/2)."""
    if _is_thin(a) and _is_thin(b):
        rows_a, rows_b = _centered(a), _centered(b)
        roots = np.linalg.svd(rows_a @ rows_b.T, compute_uv=False)
        return float((rows_a**2).sum() + (rows_b**2).sum()), float(roots.sum())
    if _is_thin(a):
        a, b = b, a
    cov = a.cov if isinstance(a, Statistics) else Statistics.of(a).cov
    if _is_thin(b):
        factor = _centered(b)
    else:
        values, vectors = np.linalg.eigh(b.cov if isinstance(b, Statistics) else Statistics.of(b).cov)
        factor = np.sqrt(values.clip(0))[:, None] * vectors.T
    squares = np.linalg.eigvalsh(factor @ cov @ factor.T)
    return float(np.trace(cov) + (factor**2).sum()), float(np.sqrt(squares.clip(0)).sum())


def _is_thin(x: np.ndarray | Statistics) -> bool:
    """Whether x is features with fewer rows than columns."""
    return not isinstance(x, Statistics) and x.shape[0] < x.shape[1]


def _centered(features: np.ndarray | Statistics) -> np.ndarray:
    """Rows whose Gram matrix is the covariance."""
    assert not isinstance(features, Statistics)
    rows = features.astype(np.float64)
    return (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)


def frechet_distance_infinity(
    reference: np.ndarray | Statistics, samples: np.ndarray, points: int = 15, seed: int = 0
) -> Extrapolated:
    """The Fréchet distance without the bias of a finite N: the intercept of a line over 1/N, fitted to the
    distances of random subsets of N/10 to N samples (Chong & Forsyth 2020: 15 points, 5,000 to 50,000).

    The subsets are drawn with `seed`. Raises UsageError if the smallest subset is not larger than the
    dimension, where the distance is not linear in 1/N.
    """
    n, dimension = samples.shape
    if n // 10 <= dimension:
        raise UsageError(
            f"extrapolating N to infinity in {dimension} dimensions needs more than {10 * dimension} "
            f"samples, got {n}"
        )
    reference = reference if isinstance(reference, Statistics) else Statistics.of(reference)
    rng = np.random.default_rng(seed)
    sizes = np.linspace(n // 10, n, points).round().astype(int)
    subsets = [samples[rng.choice(n, size, replace=False)] for size in sizes]
    distances = np.array([frechet_distance(reference, Statistics.of(subset)) for subset in subsets])
    slope, intercept = np.polyfit(1 / sizes, distances, 1)
    residual = distances - (intercept + slope / sizes)
    return Extrapolated(float(intercept), float(slope), float(np.sqrt((residual**2).mean())))
