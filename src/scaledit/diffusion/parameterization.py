"""Parameterizations: what the network's output means. With x_t = alpha x_0 + sigma eps:

    Epsilon           out = eps                         x_0 = (x_t - sigma out) / alpha
    X0                out = x_0                         eps = (x_t - alpha out) / sigma
    Velocity          out = alpha' x_0 + sigma' eps     x_0 = sigma' x_t - sigma out
                                                        eps = alpha out - alpha' x_t
    EDM               x_0 = c_skip x_t / alpha + c_out out   (Karras et al. 2022, table 1)
    LearnedRange(P)   P's C channels, then C that interpolate the log variance between two bounds
                                                        (Nichol & Dhariwal 2021, eq. 15)

' is the derivative along the schedule's arc (`Schedule.rates`): the velocity is eps - x_0 for the linear flow
and alpha eps - sigma x_0 (Salimans & Ho 2022) for variance-preserving chains.

A parameterization also defines the network's inputs: the image times c_in, and c_noise in place of t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from scaledit.diffusion.schedule import Schedule, broadcast_like, transition
from scaledit.errors import UsageError, did_you_mean
from scaledit.lazy import Tensor, torch
from scaledit.part import Part, field

NETWORK_TIME_MAX = 1000
"""The network's time is scaled to 0..1000, whatever the schedule's unit."""
Tells = Literal["t", "alpha"]
"""The network's time input: t in 0..1000, or alpha in 0..1 as in SiT (Ma et al. 2024)."""
Range = tuple[float, float]
LogVariance = Callable[["Tensor", "Tensor"], "Tensor"]
"""(t, s) -> the predicted log variance of q(x_s | x_t): elementwise (N, C, H, W), or of t's shape."""


class Prediction(NamedTuple):
    """A denoiser's estimate at x_t: the image, the noise, and (if learned) the variance of a step.

    x0, eps: (N, C, H, W), with x_t = alpha x0 + sigma eps. log_variance: a function of both times of a step,
    on which the bounds of a learned range depend; None if not learned.
    """

    x0: Tensor
    eps: Tensor
    log_variance: LogVariance | None = None


class Parameterization(
    Part, kind="parameterization", home="scaledit.diffusion.parameterization", needs=("target", "decode")
):
    """Defines the network's inputs and what its output means. Subclasses implement `target` and `decode`."""

    def channels(self, c: int) -> int:
        """The network's output channels for an image with c channels."""
        return c

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor | None:
        """c_in, by which x_t is multiplied: float64 on the CPU, of t's shape; None for 1."""
        return None

    def network_time(self, schedule: Schedule, t: Tensor) -> Tensor:
        """c_noise, the network's time input: float64 on the CPU, of t's shape."""
        return schedule.time(t) * (NETWORK_TIME_MAX / schedule.horizon)

    def time_range(self) -> Range | None:
        """The range of `network_time` on any schedule; None if it is unknown."""
        return 0, NETWORK_TIME_MAX

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The regression target of the first C output channels."""
        raise NotImplementedError

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction that the network's output `out` at (x_t, t) stands for."""
        raise NotImplementedError


def network_times(parameterization: Parameterization) -> Range | None:
    """The range of the times that the network gets; None if it is unknown, as for a class of yours that
    defines `network_time` but no `time_range`."""

    def owner(method: str) -> type:
        return next(cls for cls in type(parameterization).__mro__ if method in vars(cls))

    is_known = issubclass(owner("time_range"), owner("network_time"))
    return parameterization.time_range() if is_known else None


@dataclass(frozen=True)
class _TimeOrAlpha(Parameterization):
    """A parameterization whose network is conditioned on t or alpha. Raises UsageError for another word."""

    tells: Tells = field("t", doc="the network's time input: t in 0..1000, or alpha in 0..1 as in SiT")

    def check(self, where: str = "") -> None:
        super().check(where)
        if self.tells not in (words := get_args(Tells)):
            raise UsageError(f"{where}tells is {self.tells!r}{did_you_mean(str(self.tells), words)}")

    def network_time(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.alpha(t) if self.tells == "alpha" else super().network_time(schedule, t)

    def time_range(self) -> Range | None:
        return (0, 1) if self.tells == "alpha" else super().time_range()


def _solve(x_t: Tensor, out: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """u and v in x_t = a u + b v, where u is the network's output; v = 0 and u = x_t / a where b = 0."""
    a, b = broadcast_like(a, x_t), broadcast_like(b, x_t)
    v = torch.where(b == 0, 0, (x_t - a * out) / torch.where(b == 0, 1, b))
    # A division by a = 0 in the unused branch would make derivatives nan.
    return torch.where(b == 0, x_t / torch.where(b == 0, a, 1), out), v


@dataclass(frozen=True)
class Epsilon(_TimeOrAlpha, name="epsilon"):
    """The noise (Ho et al. 2020), as in the paper.

    At alpha = 0 (the linear flow's first time) the output does not determine x_0: there x_0 = 0, the middle
    of the range, and eps = x_t / sigma.
    """

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.coefficients(t)
        eps, x0 = _solve(x_t, out, sigma, alpha)
        return Prediction(x0, eps)


@dataclass(frozen=True)
class X0(_TimeOrAlpha, name="x0"):
    """The clean image ("x-prediction").

    At sigma = 0 the output does not determine eps: there eps = 0 and x_0 = x_t / alpha.
    """

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.coefficients(t)
        return Prediction(*_solve(x_t, out, alpha, sigma))


@dataclass(frozen=True)
class Velocity(_TimeOrAlpha, name="velocity"):
    """d x_t / d u along the schedule's arc u."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        rates = schedule.rates(t)
        return broadcast_like(rates.alpha, x0) * x0 + broadcast_like(rates.sigma, x0) * eps

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        rates = schedule.rates(t)
        alpha, sigma = (broadcast_like(value, x_t) for value in schedule.coefficients(t))
        x0 = broadcast_like(rates.sigma, x_t) * x_t - sigma * out
        return Prediction(x0, eps=alpha * out - broadcast_like(rates.alpha, x_t) * x_t)


@dataclass(frozen=True)
class EDM(Parameterization, name="edm"):
    """The preconditioning of Karras et al. 2022, table 1, on any schedule: with s = sigma / alpha the
    network's inputs are c_in x_t / alpha and c_noise, and x_0 = c_skip x_t / alpha + c_out out, where

        c_skip = d^2 / (s^2 + d^2)         c_out   = s d / sqrt(s^2 + d^2)         d = sigma_data
        c_in   = 1 / sqrt(s^2 + d^2)       c_noise = ln(s) / 4

    so that for images of standard deviation d, input and target have unit variance at all times, and the
    plain squared error on `out` has the paper's weighting. At both ends of a schedule all are finite except
    c_noise, for which s is clamped to the paper's range, 0.002 to 80.
    """

    sigma_data: float = field(0.5, gt=0, doc="d, the standard deviation of the images")

    def _norm(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The standard deviation of x_t: sqrt(sigma^2 + alpha^2 d^2)."""
        alpha, sigma = schedule.coefficients(t)
        return (sigma**2 + (alpha * self.sigma_data) ** 2).sqrt()

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        return 1 / self._norm(schedule, t)

    def network_time(self, schedule: Schedule, t: Tensor) -> Tensor:
        (alpha, sigma), (low, high) = schedule.coefficients(t), SIGMA_RANGE
        inside = (sigma > low * alpha) & (sigma < high * alpha)
        # A 0 / 0 or log 0 in the unused branch would make derivatives nan.
        ratio = torch.where(inside, sigma, 1) / torch.where(inside, alpha, 1)
        end = torch.where(sigma < high * alpha, torch.full_like(ratio, low), high)
        return torch.where(inside, ratio, end).log() / 4

    def time_range(self) -> Range | None:
        low, high = SIGMA_RANGE
        return math.log(low) / 4, math.log(high) / 4

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        (alpha, sigma), d, norm = schedule.coefficients(t), self.sigma_data, self._norm(schedule, t)
        return broadcast_like(sigma / (norm * d), x0) * x0 - broadcast_like(alpha * d / norm, x0) * eps

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        (alpha, sigma), d, norm = schedule.coefficients(t), self.sigma_data, self._norm(schedule, t)
        c_skip, c_out = alpha * (d / norm) ** 2, sigma * d / norm
        x0 = broadcast_like(c_skip, x_t) * x_t + broadcast_like(c_out, x_t) * out
        # (x_t - alpha x0) / sigma without the division, so that it holds at sigma = 0 too.
        eps = broadcast_like(sigma / norm**2, x_t) * x_t - broadcast_like(alpha * d / norm, x_t) * out
        return Prediction(x0=x0, eps=eps)


SIGMA_RANGE = (0.002, 80.0)
"""Smallest and largest sigma / alpha of sampling in Karras et al. 2022, table 1."""


@dataclass(frozen=True)
class LearnedRange(Parameterization, name="learned_range"):
    """`mean` in the first C channels, and unclamped v in the others, with frac = (v + 1) / 2:

    log variance(t, s) = frac log sigma^2_{t|s} + (1 - frac) log(sigma^2_{t|s} sigma_s^2 / sigma_t^2)
    """

    mean: Parameterization = field(Epsilon(), doc="parameterization of the first half of the channels")

    def channels(self, c: int) -> int:
        return 2 * self.mean.channels(c)

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor | None:
        return self.mean.input_scale(schedule, t)

    def network_time(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.mean.network_time(schedule, t)

    def time_range(self) -> Range | None:
        return network_times(self.mean)

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.mean.target(schedule, x0, eps, t)

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        out, v = out.chunk(2, dim=1)
        fraction = (v + 1) / 2

        def log_variance(t: Tensor, s: Tensor) -> Tensor:
            low = broadcast_like(posterior_log_variance(schedule, t, s), fraction)
            high = broadcast_like(transition(schedule, t, s).beta.log(), fraction)
            return fraction * high + (1 - fraction) * low

        return self.mean.decode(schedule, out, x_t, t)._replace(log_variance=log_variance)


def posterior_log_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """log variance of q(x_s | x_t, x_0). Where s is clean that variance is zero; there, as in DDPM's code, it
    is that of the step one tick higher, from t + dt to t."""
    clean = schedule.sigma(s) == 0
    up = torch.where(clean, t + schedule.dt, t)
    down = torch.where(clean, t, s)
    return transition(schedule, up, down).variance.log()
