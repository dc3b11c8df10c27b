"""How quality follows compute: correlation and power laws with their uncertainty, on arrays of numbers.

    r    = corr(log10 x, log10 y)
    y    = a (x / m)^-b      or      y = c + a (x / m)^-b          m: the geometric mean of x; c >= 0
    RSS  = sum_i (ln y_i - ln f(x_i))^2 -> min                     p = 2 or 3 parameters, n points
    AICc = n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1)         k = p + 1, the variance counted

All intervals are 95 % intervals from a seeded simulation. For r the points are drawn again with replacement
(Efron 1979). A law is fitted again to ln y_i* = ln f(x_i) + s z_i with z standard normal and s^2 = RSS /
chi^2 of n - p degrees of freedom, so that the interval includes the uncertainty of s: without a floor it is
Student's t interval. Points are sorted first, so their order changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaledit.errors import UsageError
from scaledit.scaling.floor import fit_floor

Array = NDArray[np.float64]

LEVELS = (2.5, 97.5)  # percentiles
PLAIN, FLOORED = 2, 3  # parameters of a law
EXACT = 1e-12  # smaller residuals are rounding; a law through all points must not have an AICc of -inf


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} (95 %: {self.low:.3g} to {self.high:.3g})"


class Correlation(NamedTuple):
    """Pearson's r of the logarithms of n points, and its 95 % interval."""

    r: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PowerLaw:
    """y = floor + coefficient (x / scale)^-exponent.

    scale: the geometric mean of the fitted x. coefficient: y above the floor at x = scale. floor: None for a
    law without one. residual: sqrt(RSS / (n - p)) of ln y; 0.1 is about 10 %. aicc: lower is better; inf with
    too few points (n < p + 3). n: number of points. draws: one row per simulated refit: ln coefficient,
    exponent, floor, ln of a new point over the law.
    """

    coefficient: float
    scale: float
    exponent: Estimate
    floor: Estimate | None
    residual: float
    aicc: float
    n: int
    draws: Array = field(repr=False, compare=False)

    def curve(self, x: ArrayLike) -> Array:
        """y at each x, in the shape of x."""
        floor = 0.0 if self.floor is None else self.floor.value
        u = np.log(np.asarray(x, np.float64) / self.scale)
        return floor + np.exp(math.log(self.coefficient) - self.exponent.value * u)

    def band(self, x: ArrayLike) -> tuple[Array, Array]:
        """The 95 % interval (low, high) of the law itself at each x, (n,)."""
        u = np.log(np.asarray(x, np.float64) / self.scale)
        level, exponent, floor, _ = self.draws.T[..., None]
        low, high = np.percentile(floor + np.exp(level - exponent * u), LEVELS, axis=0)
        return low, high

    def predict(self, x: float) -> Estimate:
        """The value of a new result at x. The interval covers the uncertainty of the law and the scatter of
        single results around it, but not that the law may bend outside the measured range."""
        level, exponent, floor, new = self.draws.T
        simulated = (floor + np.exp(level - exponent * math.log(x / self.scale))) * np.exp(new)
        return _estimate(float(self.curve(x)), simulated)

    def to_json(self) -> dict[str, Any]:
        return {
            "coefficient": self.coefficient,
            "scale": self.scale,
            "exponent": as_dict(self.exponent),
            "floor": as_dict(self.floor),
            "residual": self.residual,
            "aicc": self.aicc if math.isfinite(self.aicc) else None,
            "n": self.n,
        }


class Miss(NamedTuple):
    """A point that was held out. predicted: by the law fitted to the others; ratio: actual / predicted."""

    x: float
    actual: float
    predicted: Estimate
    ratio: float

    @property
    def inside(self) -> bool:
        """Whether the measured value lies within the prediction's interval."""
        return self.predicted.low <= self.actual <= self.predicted.high

    def describe(self) -> str:
        return f"{self.actual:.3g} was measured where the others predict {self.predicted}"


class HeldOut(NamedTuple):
    """A law fitted without the largest x, and its misses of those, by rising x."""

    law: PowerLaw
    misses: tuple[Miss, ...]


def as_dict(value: Any) -> Any:
    """A named tuple as a dict for JSON, with those among its fields; any other value unchanged."""
    if not hasattr(value, "_asdict"):
        return value
    return {name: as_dict(field) for name, field in value._asdict().items()}


def correlation(x: ArrayLike, y: ArrayLike, seed: int = 0, resamples: int = 10_000) -> Correlation:
    """Pearson's correlation of log x with log y, (n,) each. Resamples in which x or y is constant are left
    out.

    Raises UsageError for fewer than 3 points, numbers that are not positive, and a constant x or y.
    """
    u, v = np.log(_sorted(x, y, least=3))
    if np.ptp(v) == 0:
        raise UsageError("all y are equal, so they have no correlation")
    indices = np.random.default_rng(seed).integers(len(u), size=(resamples, len(u)))
    drawn_u, drawn_v = u[indices], v[indices]
    varied = (np.ptp(drawn_u, axis=1) > 0) & (np.ptp(drawn_v, axis=1) > 0)
    low, high = np.percentile(_pearson(drawn_u[varied], drawn_v[varied]), LEVELS)
    return Correlation(float(_pearson(u, v)), float(low), float(high), len(u))


def power_law(x: ArrayLike, y: ArrayLike, seed: int = 0, resamples: int = 1000) -> PowerLaw:
    """Fits the law without a floor to points x, y, (n,) each: a straight line in logarithms.

    Raises UsageError for fewer than 3 points, numbers that are not positive, and a constant x.
    """
    u, v = np.log(_sorted(x, y, least=PLAIN + 1))
    return _fitted(u, v, False, seed, resamples)


def power_law_with_floor(x: ArrayLike, y: ArrayLike, seed: int = 0, resamples: int = 1000) -> PowerLaw:
    """Fits the law with a floor c >= 0, which may lie above single points.

    Raises UsageError for fewer than 4 points, numbers that are not positive, a constant x, and y that does
    not fall as x grows.
    """
    u, v = np.log(_sorted(x, y, least=FLOORED + 1))
    if _line(u - u.mean(), v)[1] <= 0:
        raise UsageError("y does not fall as x grows, so it has no floor; use the law without one")
    return _fitted(u, v, True, seed, resamples)


def best_law(x: ArrayLike, y: ArrayLike, seed: int = 0, resamples: int = 1000) -> PowerLaw:
    """The law with or without a floor, whichever has the lower AICc; without one if a floor cannot be fitted
    (fewer than 6 points, or y does not fall). Raises UsageError as `power_law` does."""
    plain = power_law(x, y, seed, resamples)
    if plain.exponent.value <= 0 or plain.n < FLOORED + 3:
        return plain
    return min(plain, power_law_with_floor(x, y, seed, resamples), key=lambda law: law.aicc)


def held_out(
    x: ArrayLike, y: ArrayLike, largest: int = 1, floor: bool = False, seed: int = 0, resamples: int = 1000
) -> HeldOut:
    """Fits the law to all points but the `largest` ones by x, and predicts those.

    Raises UsageError for largest < 1, and as `power_law` (`power_law_with_floor`) does for the remaining
    points.
    """
    if largest < 1:
        raise UsageError(f"at least the largest point must be held out, got {largest}")
    rising_x, rising_y = _sorted(x, y, least=1)
    fit = power_law_with_floor if floor else power_law
    law = fit(rising_x[:-largest], rising_y[:-largest], seed, resamples)
    misses = []
    for at, actual in zip(rising_x[-largest:].tolist(), rising_y[-largest:].tolist(), strict=True):
        predicted = law.predict(at)
        misses.append(Miss(at, actual, predicted, actual / predicted.value))
    return HeldOut(law, tuple(misses))


def _sorted(x: ArrayLike, y: ArrayLike, least: int) -> Array:
    """(2, n): x and y by rising x. Raises UsageError for points that cannot be fitted."""
    points = [np.asarray(values, np.float64) for values in (x, y)]
    if points[0].ndim != 1 or points[0].shape != points[1].shape:
        raise UsageError(f"x and y must be two lists of equal length, got {[p.shape for p in points]}")
    if len(points[0]) < least:
        raise UsageError(f"a fit needs at least {least} points, got {len(points[0])}")
    both = np.stack(points)
    if not (np.isfinite(both) & (both > 0)).all():
        raise UsageError("x and y must be positive; leave out results that are missing or zero")
    if least > 1 and np.ptp(both[0]) == 0:
        raise UsageError("all x are equal, so nothing can be fitted")
    return both[:, np.lexsort((both[1], both[0]))]


def _pearson(u: Array, v: Array) -> Array:
    """Over the last axis."""
    u = u - u.mean(-1, keepdims=True)
    v = v - v.mean(-1, keepdims=True)
    r = (u * v).sum(-1) / np.sqrt((u * u).sum(-1) * (v * v).sum(-1))
    return np.clip(r, -1, 1)


def _estimate(value: float, simulated: Array) -> Estimate:
    low, high = np.percentile(simulated, LEVELS)
    return Estimate(value, float(low), float(high))


def _fitted(u: Array, v: Array, with_floor: bool, seed: int, resamples: int) -> PowerLaw:
    n, p = len(u), FLOORED if with_floor else PLAIN
    scale = float(u.mean())
    u = u - scale
    fit = fit_floor if with_floor else _line
    level, exponent, floor = (float(part) for part in fit(u, v))
    fitted = np.log(floor + np.exp(level - exponent * u))
    rss = max(float(((v - fitted) ** 2).sum()), n * EXACT**2)

    rng = np.random.default_rng(seed)
    deviation = np.sqrt(rss / rng.chisquare(n - p, resamples))
    noise = deviation[:, None] * rng.standard_normal((resamples, n + 1))
    draws = np.column_stack([*fit(u, fitted + noise[:, :n]), noise[:, n]])

    k = p + 1  # the variance is a parameter, too
    room = n - k - 1
    return PowerLaw(
        coefficient=math.exp(level),
        scale=math.exp(scale),
        exponent=_estimate(exponent, draws[:, 1]),
        floor=_estimate(floor, draws[:, 2]) if with_floor else None,
        residual=math.sqrt(rss / (n - p)),
        aicc=n * math.log(rss / n) + 2 * k + 2 * k * (k + 1) / room if room > 0 else math.inf,
        n=n,
        draws=draws,
    )


def _line(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """(ln a, b, 0) of v, (..., n), over u, (n,) with mean zero, by least squares."""
    level = v.mean(-1)
    return level, -(v @ u) / (u @ u), np.zeros_like(level)
