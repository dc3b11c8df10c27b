"""Metrics against cases with closed forms and against brute force, and their invariances."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from scaledit.errors import UsageError
from scaledit.evaluation.metrics import (
    Accumulator,
    Statistics,
    density_coverage,
    frechet_distance,
    frechet_distance_infinity,
    inception_score,
    kid,
    neighborhoods,
    precision_recall,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(rng(seed).standard_normal((d, d)))[0]


def covariance(d: int, seed: int) -> np.ndarray:
    root = rng(seed).standard_normal((d, d))
    return root @ root.T / d


def by_sqrtm(a: Statistics, b: Statistics) -> float:
    root = np.asarray(sqrtm(a.cov @ b.cov))
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov) - 2 * np.trace(root).real)


# The Fréchet distance


def test_frechet_of_commuting_covariances():
    """|m|^2 + sum (sqrt lambda_a - sqrt lambda_b)^2 where both have the same eigenvectors."""
    q, a, b = rotation(7), rng(1).uniform(0.1, 4, 7), rng(2).uniform(0.1, 4, 7)
    mean = rng(3).standard_normal(7)
    distance = frechet_distance(Statistics(np.zeros(7), q * a @ q.T), Statistics(mean, q * b @ q.T))
    assert distance == pytest.approx(mean @ mean + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize(("shift", "s", "r"), [(3.0, 2.0, 0.5), (0.0, 1.0, 1.0), (-1.0, 0.0, 2.0)])
def test_frechet_in_one_dimension(shift: float, s: float, r: float):
    a, b = (
        Statistics(np.zeros(1), np.full((1, 1), s * s)),
        Statistics(np.full(1, shift), np.full((1, 1), r * r)),
    )
    assert frechet_distance(a, b) == pytest.approx(shift**2 + (s - r) ** 2, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), d=st.integers(1, 12))
def test_frechet_equals_sqrtm_and_is_symmetric_and_invariant_to_rotations(seed: int, d: int):
    a = Statistics(rng(seed).standard_normal(d), covariance(d, seed + 1))
    b = Statistics(rng(seed + 2).standard_normal(d), covariance(d, seed + 3))
    distance, q = frechet_distance(a, b), rotation(d, seed)
    assert distance == pytest.approx(by_sqrtm(a, b), rel=1e-6, abs=1e-6)  # sqrtm's own error
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)
    turned = (Statistics(s.mean @ q, q.T @ s.cov @ q) for s in (a, b))
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-9, abs=1e-9)


def test_frechet_of_rank_one_and_of_zero_covariance():
    """tr (uu^T vv^T)^(1/2) = |u.v|; against a point mass the other's trace remains."""
    u, v = rng(0).standard_normal(6), rng(1).standard_normal(6)
    zero, one, two = (Statistics(np.zeros(6), c) for c in (np.zeros((6, 6)), np.outer(u, u), np.outer(v, v)))
    assert frechet_distance(one, two) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(zero, two) == pytest.approx(v @ v, rel=1e-12)
    assert frechet_distance(zero, zero) == 0
    same = np.ones((5, 6)) * u
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (10, 200), (200, 10), (200, 300), (2, 2)])
def test_features_and_statistics_give_the_same_distance(n: int, m: int):
    """Fewer samples than dimensions (30) on neither, one or both sides."""
    a, b = rng(0).standard_normal((n, 30)), 1.3 * rng(1).standard_normal((m, 30)) + 0.1
    expected = frechet_distance(Statistics.of(a), Statistics.of(b))
    for x in (a, Statistics.of(a)):
        for y in (b, Statistics.of(b)):
            assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-7)


def test_frechet_of_samples_tends_to_that_of_their_gaussians():
    """N(0, 1) against N(1, 2^2) in four dimensions: 4 (1 + 1)."""
    a, b = rng(0).standard_normal((40_000, 4)), 1 + 2 * rng(1).standard_normal((40_000, 4))
    assert frechet_distance(a, b) == pytest.approx(8, rel=0.02)


def test_extrapolation_removes_the_bias_of_n():
    """Samples of the reference's own Gaussian: the distance at N is biased by O(D^2/N), its intercept not."""
    d, n = 16, 4000
    reference = Statistics(np.zeros(d), np.eye(d))
    biased, extrapolated = [], []
    for seed in range(4):
        samples = rng(seed).standard_normal((n, d))
        biased.append(frechet_distance(reference, samples))
        result = frechet_distance_infinity(reference, samples, seed=seed)
        assert result == frechet_distance_infinity(reference, samples, seed=seed)
        assert result.slope > 0
        extrapolated.append(result.value)
    assert np.mean(biased) > 0.02
    assert abs(np.mean(extrapolated)) < 0.25 * np.mean(biased)


# Inception Score


def test_inception_score_of_uniform_and_of_certain_predictions():
    assert inception_score(np.zeros((100, 10))) == pytest.approx(1, rel=1e-12)
    certain = 1e4 * np.eye(10)[np.arange(100) % 10]
    assert inception_score(certain) == pytest.approx(10, rel=1e-9)
    assert inception_score(certain[:1].repeat(100, axis=0)) == pytest.approx(1, rel=1e-9)


def test_inception_score_is_the_mean_over_splits_and_ignores_an_offset():
    logits = 3 * rng().standard_normal((25, 5))
    by_hand = []
    for part in (logits[:10], logits[10:20], logits[20:]):
        p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        by_hand.append(np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()))
    assert inception_score(logits, split_size=10) == pytest.approx(np.mean(by_hand), rel=1e-9)
    assert inception_score(logits + 1000, split_size=10) == pytest.approx(np.mean(by_hand), rel=1e-9)


# Neighborhoods


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    def squared(u, v):
        return ((u[:, None] - v[None]) ** 2).sum(-1)

    radii = [np.sort(squared(x, x), axis=1)[:, k] for x in (real, fake)]
    inside = squared(real, fake) <= radii[0][:, None]
    recalled = squared(real, fake) <= radii[1][None]
    return inside.any(0).mean(), recalled.any(1).mean(), inside.sum() / (k * len(fake)), inside.any(1).mean()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(5, 40), m=st.integers(5, 40), k=st.integers(1, 4))
def test_neighborhoods_by_brute_force(seed: int, n: int, m: int, k: int):
    """On whole numbers every distance is exact, and so are ties: balls are closed."""
    real = rng(seed).integers(0, 4, (n, 3)).astype(np.float32)
    fake = rng(seed + 1).integers(0, 5, (m, 3)).astype(np.float32)
    assert tuple(neighborhoods(real, fake, k, k)) == pytest.approx(brute_force(real, fake, k), rel=1e-12)
    assert tuple(precision_recall(real, fake, k)) == pytest.approx(brute_force(real, fake, k)[:2])
    assert tuple(density_coverage(real, fake, k)) == pytest.approx(brute_force(real, fake, k)[2:])


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch):
    real, fake = rng(0).standard_normal((90, 8)), rng(1).standard_normal((70, 8)) + 0.4
    expected = neighborhoods(real, fake)
    for tile in (7, 32, 90):
        monkeypatch.setattr("scaledit.evaluation.metrics.neighbors.TILE", tile)
        assert neighborhoods(real, fake) == expected


def test_identical_sets_and_sets_far_apart():
    a = rng().standard_normal((50, 16))
    for precision in ("fp32", "adm_fp16"):
        assert tuple(precision_recall(a, a, precision=precision)) == (1, 1)
        assert tuple(precision_recall(a, a + 100, precision=precision)) == (0, 0)
    assert density_coverage(a, a).coverage == 1
    assert tuple(density_coverage(a, a + 100)) == (0, 0)
    cluster = a[:1] + 1e-3 * rng(1).standard_normal((50, 16))  # around one real point: precise, no recall
    result = precision_recall(a, cluster)
    assert result.precision == 1
    assert result.recall <= 1 / 50


def test_neighborhoods_hold_a_tile_not_the_matrix(monkeypatch: pytest.MonkeyPatch):
    """4,000 x 4,000 distances in float32 are 64 MB; only a tile is allocated at a time. (benchmarks/ measures
    the complete process at 20,000 x 10,000.)"""
    largest = 0
    original = torch.Tensor.__matmul__

    def watched(u, v):
        nonlocal largest
        out = original(u, v)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    neighborhoods(rng(0).standard_normal((4000, 4)), rng(1).standard_normal((4000, 4)))
    assert 0 < largest <= 2048**2


# The kernel distance


def test_kid_by_hand_and_without_bias():
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [2.0, 0.0]])

    def k(u, v):
        return (u @ v / 2 + 1) ** 3

    by_hand = k(x[0], x[1]) + k(y[0], y[1]) - 2 * np.mean([k(u, v) for u in x for v in y])
    result = kid(x, y, subsets=3)
    assert result.mean == pytest.approx(by_hand, rel=1e-12)
    assert result.std == pytest.approx(0, abs=1e-12)  # each subset is the complete set
    a, b = rng(0).standard_normal((4000, 6)), rng(1).standard_normal((4000, 6))
    same = kid(a, b, subset_size=400)
    assert abs(same.mean) < 3 * same.std / 10
    assert kid(a, b + 1, subset_size=400).mean > 10 * same.std
    assert same == kid(a, b, subset_size=400)


# Statistics


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_batches_make_one_set(seed: int, cuts: list[int]):
    """Of any sizes, below and above those of the blocks that are merged; the mean is far from zero, where a
    running sum of squares would lose precision."""
    features = (1e4 + rng(seed).standard_normal((3000, 5))).astype(np.float32)
    accumulator = Accumulator()
    for batch in np.split(features, sorted(cuts)):
        accumulator.add(batch)
    statistics, exact = accumulator.result(), features.astype(np.float64)
    assert statistics.n == 3000
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(statistics.cov, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-10)


# Bad input


def test_bad_features_are_refused():
    good = rng().standard_normal((20, 4))
    bad = good.copy()
    bad[7, 2] = np.nan
    for call in (
        lambda: frechet_distance(good, bad),
        lambda: precision_recall(bad, good),
        lambda: kid(good, bad),
        lambda: inception_score(bad),
        lambda: Accumulator().add(bad),
    ):
        with pytest.raises(UsageError, match=r"sample 7 are not finite \(1 of 20"):
            call()
    with pytest.raises(UsageError, match="at least two samples, got 1"):
        frechet_distance(good[:1], good)
    with pytest.raises(UsageError, match="4 and 3 dimensions"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(UsageError, match="more than 3 samples in each set, got 3"):
        precision_recall(good, good[:3])
    with pytest.raises(UsageError, match=r"needs more than 40 samples, got 20"):
        frechet_distance_infinity(good, good)
    with pytest.raises(UsageError, match=r"\(N, D\), got the shape \(20,\)"):
        Statistics.of(good[:, 0])


@pytest.mark.slow
def test_neighborhoods_of_a_full_evaluation_fit_a_laptop():
    """20,000 x 10,000 in 2048 dimensions: the peak memory of a separate process."""
    script = Path(__file__).parent.parent / "benchmarks" / "evaluation.py"
    done = subprocess.run([sys.executable, script, "neighborhoods"], capture_output=True, check=True)
    assert json.loads(done.stdout)["peak_gb"] < 1.5
