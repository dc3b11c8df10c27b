"""What the network's output means. With x_t = alpha x_0 + sigma eps:

    Epsilon           out = eps                         x_0 = (x_t - sigma out) / alpha
    Start             out = x_0                         eps = (x_t - alpha out) / sigma
    Velocity          out = alpha' x_0 + sigma' eps     x_0 = sigma' x_t - sigma out
                                                        eps = alpha out - alpha' x_t
    LearnedRange(P)   P's C channels, then C with the log variance's place between two bounds
                                                        (Nichol & Dhariwal 2021, eq. 15)

In the schedule's own arc (`Schedule.rates`) the velocity is eps - x_0 for the linear flow and
alpha eps - sigma x_0 (Salimans & Ho 2022) for variance-preserving chains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.diffusion.schedule import Schedule, coefficient, transition
from scaledit.part import Part, field

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch

LogVariance = Callable[["Tensor", "Tensor"], "Tensor"]
"""(t, s) -> the predicted log variance of q(x_s | x_t), elementwise (N, C, H, W)."""


class Prediction(NamedTuple):
    """What a denoiser says of x_t: the image, the noise, and (if learned) the variance of a step.

    x0, eps: (N, C, H, W), with x_t = alpha x0 + sigma eps. log_variance: a function of the pair of times,
    since a learned range lies between bounds that depend on how far the step goes; None if not learned.
    """

    x0: Tensor
    eps: Tensor
    log_variance: LogVariance | None = None


class Parameterization(
    Part, kind="parameterization", home="scaledit.diffusion.parameterization", needs=("target", "decode")
):
    def channels(self, c: int) -> int:
        """Output channels of the network for an image with c channels."""
        return c

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the first c output channels should be."""
        raise NotImplementedError

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What the network's output says of x_t."""
        raise NotImplementedError


@dataclass(frozen=True)
class Epsilon(Parameterization, name="epsilon"):
    """The noise (Ho et al. 2020): the paper's.

    Where no signal is left (alpha = 0, the linear flow's first time) the output says nothing of x_0: there
    x_0 = 0, the middle of the range, and eps is all of x_t.
    """

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = coefficient(schedule.alpha(t), x_t), coefficient(schedule.sigma(t), x_t)
        x0 = torch.where(alpha == 0, 0, (x_t - sigma * out) / torch.where(alpha == 0, 1, alpha))
        return Prediction(x0=x0, eps=torch.where(alpha == 0, x_t / sigma, out))


@dataclass(frozen=True)
class Start(Parameterization, name="start"):
    """The clean image. Where no noise is left (sigma = 0) the output says nothing of eps: there eps = 0 and
    x_0 is all of x_t."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = coefficient(schedule.alpha(t), x_t), coefficient(schedule.sigma(t), x_t)
        eps = torch.where(sigma == 0, 0, (x_t - alpha * out) / torch.where(sigma == 0, 1, sigma))
        return Prediction(x0=torch.where(sigma == 0, x_t / alpha, out), eps=eps)


@dataclass(frozen=True)
class Velocity(Parameterization, name="velocity"):
    """d x_t / d u along the schedule's own arc u."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        rates = schedule.rates(t)
        return coefficient(rates.alpha, x0) * x0 + coefficient(rates.sigma, x0) * eps

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        rates = schedule.rates(t)
        alpha, sigma = coefficient(schedule.alpha(t), x_t), coefficient(schedule.sigma(t), x_t)
        x0 = coefficient(rates.sigma, x_t) * x_t - sigma * out
        eps = alpha * out - coefficient(rates.alpha, x_t) * x_t
        return Prediction(x0=x0, eps=eps)


@dataclass(frozen=True)
class LearnedRange(Parameterization, name="learned_range"):
    """`mean` on the first C channels, and on the others v, unclamped, with frac = (v + 1) / 2:

    log variance(t, s) = frac log sigma^2_{t|s} + (1 - frac) log(sigma^2_{t|s} sigma_s^2 / sigma_t^2)
    """

    mean: Parameterization = field(Epsilon(), doc="what the first half of the channels is")

    def channels(self, c: int) -> int:
        return 2 * self.mean.channels(c)

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.mean.target(schedule, x0, eps, t)

    def decode(self, schedule: Schedule, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        out, v = out.chunk(2, dim=1)
        fraction = (v + 1) / 2

        def log_variance(t: Tensor, s: Tensor) -> Tensor:
            low = coefficient(posterior_log_variance(schedule, t, s), fraction)
            high = coefficient(transition(schedule, t, s).beta.log(), fraction)
            return fraction * high + (1 - fraction) * low

        return self.mean.decode(schedule, out, x_t, t)._replace(log_variance=log_variance)


def posterior_log_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """log variance of q(x_s | x_t, x_0), clipped where s is clean and the variance zero: there it is that
    of the neighbouring pair one tick up, as in DDPM's code."""
    clean = schedule.sigma(s) == 0
    up = torch.where(clean, t + schedule.tick, t)
    down = torch.where(clean, t, s)
    return transition(schedule, up, down).variance.log()
