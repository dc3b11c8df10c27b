"""Which model is best for a training budget, and whether sampling compute makes up for model compute.

    best within C:   argmin d_i over results with C_i <= C              staircase: those no cheaper one beats
    best at C:       argmin over models of d(C), ln d straight in ln C between a model's own results
    iso-FLOP at C:   ln d = q_0 + q_1 ln N + q_2 (ln N)^2 over the models N;      N_opt = exp(-q_1 / 2 q_2)
    optimal size:    N_opt(C) proportional to C^a

C: multiply-adds of training. N: the size of a model, in multiply-adds of a forward pass or in parameters, as
the caller chooses. d: a distance, lower is better. Iso-FLOP profiles are those of Hoffmann et al. 2022 (their
second approach). Nothing is extrapolated: a model takes part within the range of its own results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from scaledit.errors import UsageError
from scaledit.scaling.fits import Estimate, PowerLaw, power_law

MINIMA = 3  # interior minima that the law of the optimal size needs


class Point(NamedTuple):
    """A result: the training compute up to it, and its distance."""

    name: str
    compute: float
    distance: float


class Curve(NamedTuple):
    """A model over its training: distances at rising compute, both positive. size: N."""

    name: str
    size: float
    compute: tuple[float, ...]
    distance: tuple[float, ...]

    def at(self, budget: float) -> float | None:
        """The distance at this compute, interpolated; None outside the measured range."""
        if not self.compute or not self.compute[0] <= budget <= self.compute[-1]:
            return None
        # As floats: whole numbers of multiply-adds may exceed int64.
        compute, distance = np.log(np.array([self.compute, self.distance], np.float64))
        return float(np.exp(np.interp(math.log(budget), compute, distance)))


Where = Literal["interior", "smallest", "largest", "unclear"]


class IsoFlop(NamedTuple):
    """All models that can be compared at one budget.

    points: (name, size, distance) by rising size. where: the place of the minimum: "interior"; at the
    "smallest" or "largest" model, so that the optimum may lie beyond; "unclear" with fewer than three sizes,
    and if the parabola has its minimum outside the sizes although the best model is not at an edge. size,
    distance: at the parabola's minimum; None unless it is interior.
    """

    budget: float
    points: tuple[tuple[str, float, float], ...]
    where: Where
    size: float | None
    distance: float | None


class OptimalSize(NamedTuple):
    """N_opt(C) = law(C), a power law through the minima at several budgets; exponent: of its growth.

    Minima at different budgets come from the same training runs, so they are not independent: the interval
    reflects the scatter around the law, and is too narrow if the law itself is wrong.
    """

    exponent: Estimate
    law: PowerLaw

    def at(self, budget: float) -> Estimate:
        return self.law.predict(budget)


class Sampled(NamedTuple):
    """A sampled model. macs: of one forward pass; sampling_macs: of one image."""

    name: str
    macs: float
    sampling_macs: float
    distance: float


class Pair(NamedTuple):
    """A smaller model with more sampling compute than a larger one."""

    small: Sampled
    large: Sampled


class SamplingAgainstModel(NamedTuple):
    """compared: all pairs in which the smaller model has more sampling compute. counterexamples: those in
    which it also has the smaller distance, so that sampling compute made up for model compute."""

    compared: tuple[Pair, ...]
    counterexamples: tuple[Pair, ...]


def best_within(points: Iterable[Point], budget: float) -> Point | None:
    """The result with the smallest distance that costs no more than the budget, the cheaper one of equals;
    None if all cost more."""
    affordable = [point for point in points if point.compute <= budget]
    return min(affordable, key=lambda point: (point.distance, point.compute), default=None)


def staircase(points: Iterable[Point]) -> list[Point]:
    """The results that no result of the same or less compute equals or beats, by rising compute: the best
    within each budget."""
    steps: list[Point] = []
    for point in sorted(points, key=lambda point: (point.compute, point.distance)):
        if not steps or point.distance < steps[-1].distance:
            steps.append(point)
    return steps


def curve(name: str, size: float, results: Iterable[tuple[float, float]]) -> Curve:
    """A `Curve` through (compute, distance) in any order. Raises UsageError for numbers that are not positive
    and for two results at the same compute."""
    rising = sorted((float(compute), float(distance)) for compute, distance in results)
    if not all(number > 0 and math.isfinite(number) for pair in rising for number in (size, *pair)):
        raise UsageError(f"{name}: size, compute and distance must be positive")
    compute, distance = (tuple(column) for column in zip(*rising, strict=True)) if rising else ((), ())
    if len(set(compute)) < len(compute):
        raise UsageError(f"{name}: it has two results with the same compute; use their mean")
    return Curve(name, size, compute, distance)


def iso_flop(curves: Sequence[Curve], budgets: Iterable[float]) -> list[IsoFlop]:
    """The profile at each budget: all models that reach it, and the minimum of a least-squares parabola
    through them in ln size and ln distance."""
    return [_iso_flop(curves, budget) for budget in budgets]


def _iso_flop(curves: Sequence[Curve], budget: float) -> IsoFlop:
    points = sorted(
        ((c.name, c.size, distance) for c in curves if (distance := c.at(budget)) is not None),
        key=lambda point: point[1],
    )
    sizes = np.log(np.array([size for _, size, _ in points], np.float64))
    if len(set(sizes.tolist())) < 3:
        return IsoFlop(budget, tuple(points), "unclear", None, None)
    distances = np.log([distance for _, _, distance in points])
    lowest = sizes[distances.argmin()]
    if lowest in (sizes[0], sizes[-1]):
        return IsoFlop(budget, tuple(points), "smallest" if lowest == sizes[0] else "largest", None, None)
    middle = sizes.mean()
    bend, slope, level = np.polyfit(sizes - middle, distances, 2)
    at = -slope / (2 * bend) if bend > 0 else math.inf
    if not sizes[0] < middle + at < sizes[-1]:
        return IsoFlop(budget, tuple(points), "unclear", None, None)
    distance = math.exp(level + slope * at / 2)
    return IsoFlop(budget, tuple(points), "interior", math.exp(middle + at), distance)


def common_budgets(curves: Sequence[Curve], count: int = 8) -> list[float]:
    """`count` budgets in equal ratios over the range in which at least three models of different sizes can be
    compared; none if there is no such range."""
    ends = sorted({float(end) for c in curves if c.compute for end in (c.compute[0], c.compute[-1])})
    shared = [end for end in ends if len({c.size for c in curves if c.at(end) is not None}) >= 3]
    if len(shared) < 2:
        return shared
    return np.clip(np.geomspace(shared[0], shared[-1], count), shared[0], shared[-1]).tolist()


def optimal_size(profiles: Iterable[IsoFlop], seed: int = 0, resamples: int = 1000) -> OptimalSize | None:
    """The law of the optimal size through the interior minima; None with fewer than three of them."""
    minima = [(profile.budget, profile.size) for profile in profiles if profile.size is not None]
    if len(minima) < MINIMA:
        return None
    law = power_law(*zip(*minima, strict=True), seed=seed, resamples=resamples)
    value, low, high = law.exponent
    return OptimalSize(Estimate(-value, -high, -low), law)


def sampling_against_model(results: Iterable[Sampled]) -> SamplingAgainstModel:
    """Compares every larger model with every smaller one that has more sampling compute."""
    ordered = sorted(results)
    compared = tuple(
        Pair(small, large)
        for large in ordered
        for small in ordered
        if small.macs < large.macs and small.sampling_macs > large.sampling_macs
    )
    counterexamples = tuple(pair for pair in compared if pair.small.distance < pair.large.distance)
    return SamplingAgainstModel(compared, counterexamples)
