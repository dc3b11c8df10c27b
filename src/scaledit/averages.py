"""Averages of the weights over training with a power-function profile, of any length, after training.

    track      a_n = beta(n) a_(n-1) + (1 - beta(n)) w_n       beta(n) = (1 - 1/n)^(gamma + 1),  n from 1
    profile    a_n = sum_k p_n(k) w_k                          p_n(k) = (k^(gamma + 1) - (k - 1)^(gamma + 1))
                                                                        / n^(gamma + 1)
    length     sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))

sigma_rel is the standard deviation of the profile over the time of training, as a share of that time: 0.10
averages over about the last tenth of any run (Karras et al. 2024, "Analyzing and Improving the Training
Dynamics of Diffusion Models", section 3.1). Between the steps k - 1 and k the profile is the integral of
f(tau) = (gamma + 1) tau^gamma / n^(gamma + 1), exactly.

Snapshots of a few tracks during training suffice for all lengths (section 3.2 and appendix C): the wanted
profile is approximated by a combination of the kept ones,

    min over x of |f - sum_i x_i f_i|^2     subject to  sum_i x_i = 1

whose inner products have a closed form. The constraint is not in the paper: with it the combination of equal
weights is exact, so only their changes are approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scaledit.errors import UsageError, shown
from scaledit.lazy import np

LONGEST = 1 / math.sqrt(12)
"""sigma_rel of gamma = 0, the mean of all steps."""
SHORTEST = 0.005
LARGEST_ERROR = 0.1
"""Above this relative residual of the profile, a length is outside of what the snapshots can give."""
_BISECTIONS = 200
_CUT = 1e-13
"""Relative singular values below this are zero in the least-squares solution."""


def length_of(gamma: float) -> float:
    """sigma_rel of a profile with this exponent, which is at least 0."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def exponent(length: float) -> float:
    """gamma of a profile with this relative length: 16.97 for 0.05, 6.94 for 0.10. Raises UsageError unless
    it is a length of `check_length`."""
    check_length(length)
    low, high = 0.0, 1.0 / length**2  # sigma_rel decreases with gamma from 0 on, and is below gamma^(-1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if length_of(middle) > length else (low, middle)
    return (low + high) / 2


def check_length(length: float, name: str = "the length of an average") -> None:
    """Raises UsageError unless sigma_rel can be `length`. name: of the value, for messages."""
    if not SHORTEST <= length < LONGEST:
        raise UsageError(
            f"{name} must be from {SHORTEST} to below {LONGEST:.4f} of the training, the mean of all steps; "
            f"got {length:g}"
        )


def decay_at(gamma: float, n: int) -> float:
    """beta(n) of the update after step n = 1, 2, ...; 0 for the first."""
    return (1 - 1 / n) ** (gamma + 1)


def profile(gamma: float, n: int) -> np.ndarray:
    """(n,) float64: the weight of each of the steps 1..n in a track after step n; they sum to 1."""
    edges = (np.arange(n + 1) / n) ** (gamma + 1)
    return np.diff(edges)


class Kept(NamedTuple):
    """A track that was kept: its relative length, and the step after which it was written."""

    length: float
    step: int


class Fit(NamedTuple):
    """coefficients: of each kept track, summing to 1. error: |f - sum x_i f_i| / |f|, the relative residual
    of the profile."""

    coefficients: tuple[float, ...]
    error: float


def product(a_time: np.ndarray, a: np.ndarray, b_time: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The inner product of two profiles, integrated over time; a, b: their gammas.

    (a + 1) (b + 1) m^(a + b + 1) / ((a + b + 1) a_time^(a + 1) b_time^(b + 1))     m = min(a_time, b_time)
    """
    least = np.minimum(a_time, b_time)
    powers = (a + 1) * np.log(least / a_time) + (b + 1) * np.log(least / b_time)
    return (a + 1) * (b + 1) / ((a + b + 1) * least) * np.exp(powers)


def fit(kept: Sequence[Kept], length: float, step: int) -> Fit:
    """The combination of kept tracks that is closest to the average of this length after `step`.

    kept: different tracks, none later than `step`. Raises UsageError unless the length is one of
    `check_length`.
    """
    wanted = exponent(length)
    times = np.array([one.step for one in kept], dtype=np.float64) / step
    gammas = np.array([exponent(one.length) for one in kept])
    one, gamma = np.array(1.0), np.array(wanted)
    gram = product(times[:, None], gammas[:, None], times, gammas)
    right, norm = product(times, gammas, one, gamma), float(product(one, gamma, one, gamma))
    scale = np.sqrt(np.diag(gram))  # profiles of early steps are high and narrow
    n = len(kept)
    system = np.zeros((n + 1, n + 1))  # of the Lagrangian, for x_i scale_i
    system[:n, :n] = gram / scale / scale[:, None]
    system[:n, n] = system[n, :n] = 1 / scale
    solution = np.linalg.lstsq(system, np.append(right / scale, 1.0), rcond=_CUT)[0]
    x = solution[:n] / scale
    x /= x.sum()
    residual = float(x @ gram @ x - 2 * x @ right + norm)
    return Fit(tuple(x.tolist()), math.sqrt(max(residual, 0.0) / norm))


def reachable(kept: Sequence[Kept], step: int) -> tuple[float, float] | None:
    """The shortest and the longest length, in hundredths, that the kept tracks give at `step` with at most
    LARGEST_ERROR; None if there is none."""
    grid = [hundredths / 100 for hundredths in range(1, math.ceil(LONGEST * 100))]
    good = [length for length in grid if fit(kept, length, step).error <= LARGEST_ERROR]
    return (good[0], good[-1]) if good else None


class Average(NamedTuple):
    """An average that is asked for: its relative length, and the step of training at which it ends, None for
    the last one that was kept."""

    length: float
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.length:g}" + ("" if self.step is None else f"@{self.step}")


def asked(value: str | float | Average | None) -> Average | None:
    """The average that a user names: 0.13, "0.13", or "0.13@20000" for an earlier step; None, 0 and "" are
    none.

    Raises UsageError for other values.
    """
    if value is None or isinstance(value, Average):
        return value
    length, at, step = str(value).partition("@")
    try:
        number = float(length or 0)
        end = int(step) if at else None
    except ValueError:
        number, end = math.nan, None
    if number == 0 and not at:
        return None
    if not math.isfinite(number) or (end is not None and end < 1):
        raise UsageError(
            f"an average is a relative length such as 0.1, or LENGTH@STEP such as 0.1@20000; got "
            f"{shown(value)}"
        )
    check_length(number)
    return Average(number, end)
