"""Distances and scores on features (numpy arrays, one row a sample). No image and no network is touched.

    FD(a, b) = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)     Dowson & Landau 1982, Heusel 2017
    IS       = exp E_x KL(p(y|x) || E_x p(y|x))                           Salimans 2016
    KID      = MMD^2 with the kernel (x.y / D + 1)^3, unbiased            Binkowski 2018
    FD_inf   = the intercept of FD(N) over 1/N                            Chong & Forsyth 2020

Precision, recall, density and coverage are in `neighbours`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scaledit.errors import UsageError
from scaledit.evaluation.neighbours import (
    DensityCoverage,
    Neighbourhoods,
    PrecisionRecall,
    density_coverage,
    neighbourhoods,
    precision_recall,
)
from scaledit.evaluation.statistics import Accumulator, Statistics, check_features

__all__ = [
    "Accumulator",
    "DensityCoverage",
    "Extrapolated",
    "Neighbourhoods",
    "PrecisionRecall",
    "Spread",
    "Statistics",
    "density_coverage",
    "frechet_distance",
    "frechet_distance_infinity",
    "inception_score",
    "kid",
    "neighbourhoods",
    "precision_recall",
]


class Spread(NamedTuple):
    """A mean and the standard deviation of what it is the mean of."""

    mean: float
    std: float


class Extrapolated(NamedTuple):
    """value: the distance at N -> infinity. slope: of the distance over 1/N. residual: root mean square of
    the fit's residuals, in units of the distance."""

    value: float
    slope: float
    residual: float


def frechet_distance(a: np.ndarray | Statistics, b: np.ndarray | Statistics) -> float:
    """The squared Fréchet distance between Gaussians fitted to a and b: (N, D) features, or Statistics.

    All in float64. With F_b a factor of C_b (C_b = F_b^T F_b), the eigenvalues of C_a C_b are those of the
    symmetric F_b C_a F_b^T, and of those no root needs a complex number or an offset. Where a set of
    features is smaller than the dimension, F_b is its centred rows, and the problem shrinks to N x N.

    Raises UsageError for fewer than two samples, features that are not finite, or dimensions that differ.
    """
    mean_a, mean_b = _mean(a), _mean(b)
    if mean_a.shape != mean_b.shape:
        raise UsageError(f"features of {len(mean_a)} and {len(mean_b)} dimensions cannot be compared")
    difference = mean_a - mean_b
    trace, overlap = _covariances(a, b)
    return float(difference @ difference + trace - 2 * overlap)


def _mean(of: np.ndarray | Statistics) -> np.ndarray:
    if isinstance(of, Statistics):
        return of.mean
    check_features(of)
    if len(of) < 2:
        raise UsageError(f"a covariance needs at least two samples, got {len(of)}")
    return of.mean(axis=0, dtype=np.float64)


def _covariances(a: np.ndarray | Statistics, b: np.ndarray | Statistics) -> tuple[float, float]:
    """tr C_a + tr C_b, and tr (C_a C_b)^(1/2)."""
    if _is_thin(a) and _is_thin(b):
        rows_a, rows_b = _centred(a), _centred(b)
        roots = np.linalg.svd(rows_a @ rows_b.T, compute_uv=False)
        return float((rows_a**2).sum() + (rows_b**2).sum()), float(roots.sum())
    if _is_thin(a):
        a, b = b, a
    cov = a.cov if isinstance(a, Statistics) else Statistics.of(a).cov
    if _is_thin(b):
        factor = _centred(b)
    else:
        values, vectors = np.linalg.eigh(b.cov if isinstance(b, Statistics) else Statistics.of(b).cov)
        factor = np.sqrt(values.clip(0))[:, None] * vectors.T
    squares = np.linalg.eigvalsh(factor @ cov @ factor.T)
    return float(np.trace(cov) + (factor**2).sum()), float(np.sqrt(squares.clip(0)).sum())


def _is_thin(of: np.ndarray | Statistics) -> bool:
    """Features with fewer rows than columns."""
    return not isinstance(of, Statistics) and of.shape[0] < of.shape[1]


def _centred(features: np.ndarray | Statistics) -> np.ndarray:
    """Rows whose Gram matrix is the covariance."""
    assert not isinstance(features, Statistics)
    rows = features.astype(np.float64)
    return (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)


def frechet_distance_infinity(
    reference: np.ndarray | Statistics, samples: np.ndarray, points: int = 15, seed: int = 0
) -> Extrapolated:
    """The Fréchet distance without the bias of a finite N: distances of random subsets of N/10 ... N samples,
    a line through them over 1/N, its intercept (Chong & Forsyth 2020: 15 points, 5,000 to 50,000).

    The subsets are drawn with `seed`. Raises UsageError where the smallest subset is not larger than the
    dimension: there the distance is no line in 1/N.
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


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    """The mean of the score over consecutive splits of `split_size` samples, as ADM takes it.

    logits (N, classes), for ADM's score without the bias of the last layer. 1 where all predictions are
    equal; the number of classes where each is certain and all are equally frequent. Raises UsageError if a
    logit is not finite.
    """
    check_features(logits)
    scores = []
    for first in range(0, len(logits), split_size):
        part = logits[first : first + split_size].astype(np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))


def kid(
    reference: np.ndarray, samples: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Spread:
    """The kernel distance: the mean over random subsets and its standard deviation between subsets.

    Unbiased, so it may be slightly negative for equal sets, and needs no large N. Subsets hold
    min(subset_size, N_reference, N_samples) features, drawn with `seed` without repetition.
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
