"""Noise schedules: how much signal and how much noise is left at time t.

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I)

Times and coefficients are float64 and live on the CPU, whatever the device of the images: a few numbers
a batch, exact to the last digit on devices without float64. Discrete schedules have the times 0..steps-1
and -1 for the clean image; the linear flow has [0, 1] with 0 clean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from scaledit.errors import UsageError
from scaledit.part import Part, field

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import np, torch

NETWORK_TIME_MAX = 1000
"""The network is told times in 0..1000, whatever the schedule's own."""
MOST_STEPS = 1_000_000
"""Of a schedule, and of sampling: each is a number in memory, and in sampling a pass of the network."""
MAX_BETA = 0.999
"""Keeps the last posterior finite (Nichol & Dhariwal 2021, section 3.2)."""
LOG_SNR_CUT = (-5.1, 4.6)
"""Where grids in lambda = log(alpha / sigma) end on schedules whose lambda is infinite at an end, or nearly:
about the ends of the paper's own schedule, -5.06 at t = 999 and 4.61 at t = 0. Below -5.1 x_t is noise but
for 0.6 % of the image, and above 4.6 the noise is about one step of 8 bits."""


class Rates(NamedTuple):
    """d alpha / du and d sigma / du in the schedule's own unit of arc u, in which
    alpha * sigma_rate - sigma * alpha_rate = 1 (so that velocity and x_t determine x0 and eps)."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Schedule(Part, kind="schedule", home="scaledit.diffusion.schedule", needs=("alpha", "sigma")):
    """Shapes follow t: a scalar time gives scalar coefficients, (N,) gives (N,).

    clean: the time at which sigma is zero.
    """

    clean: ClassVar[float]

    steps: int = field(1000, ge=2, le=MOST_STEPS, doc="times of the training chain")

    @property
    def tick(self) -> float:
        """Distance between neighbouring times of the training chain (for the variational bound)."""
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def rates(self, t: Tensor) -> Rates:
        raise NotImplementedError

    def grid(self, steps: int) -> Tensor:
        """Descending times of a sampler with `steps` steps, even in t: (steps + 1,), the last one clean."""
        raise NotImplementedError

    def log_snr_grid(self, steps: int) -> Tensor:
        """The same, even in lambda = log(alpha / sigma) between its first and its last value with noise (or
        LOG_SNR_CUT where that lies inside): the first of the steps + 1 points is the noisiest time, whatever
        its lambda, and in place of the last stands the clean image."""
        raise NotImplementedError

    def at(self, u: Tensor) -> Tensor:
        """The training time at the fraction u in [0, 1) of the schedule."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told: 0..1000."""
        raise NotImplementedError


def times(t: Tensor | float) -> Tensor:
    """t as float64 on the CPU."""
    return torch.as_tensor(t).detach().to("cpu", torch.float64)


def respaced(total: int, steps: int) -> list[int]:
    """ADM's respacing (Nichol & Dhariwal 2021): `steps` of the times 0..total-1 at a fractional stride,
    rounded half to even, with the first and the last included; ascending."""
    if not 1 <= steps <= total:
        raise UsageError(f"steps must lie in 1..{total} (the schedule's own steps), got {steps}")
    if steps == 1:
        return [total - 1]  # a lone step must start where the noise is (ADM's rule would give time 0)
    stride = (total - 1) / (steps - 1)
    kept, position = [], 0.0
    for _ in range(steps):  # accumulated, not multiplied: the official rounding depends on it
        kept.append(round(position))
        position += stride
    return kept


def even_in_log_snr(log_snr: np.ndarray, steps: int) -> list[int]:
    """`steps` different ones of the times 0..total-1, as even in log_snr (total,) as whole times can be,
    ascending; the last is total - 1. Near the clean end a chain's neighbours lie further apart than a fine
    grid's points: such a grid takes every time there is, so that none is visited twice."""
    total = len(log_snr)
    if not 1 <= steps <= total:
        raise UsageError(f"steps must lie in 1..{total} (the schedule's own steps), got {steps}")
    points = np.linspace(log_snr[0], max(log_snr[-1], LOG_SNR_CUT[0]), steps + 1)[1:]
    # np.interp wants ascending abscissae; lambda falls with t.
    wanted = np.interp(-points, -log_snr, np.arange(total)).round().astype(int).tolist()
    wanted[-1] = total - 1
    kept: list[int] = []
    for i, t in enumerate(wanted):
        lowest = kept[-1] + 1 if kept else 0
        kept.append(min(max(t, lowest), total - steps + i))
    return kept


def ddim_stride(total: int, steps: int) -> list[int]:
    """The integer stride of the DDIM paper, ADM's `ddimN`: exactly `steps` of 0..total-1, or an error."""
    for stride in range(1, total):
        kept = list(range(0, total, stride))
        if len(kept) == steps:
            return kept
    raise UsageError(f"no integer stride over {total} times gives exactly {steps} steps")


@dataclass(frozen=True)
class BetaSchedule(Schedule):
    """A variance-preserving chain from its betas: alpha^2(t) = prod_{i <= t} (1 - beta_i) (DDPM, eq. 4)."""

    @cached_property
    def betas(self) -> Tensor:
        """(steps,) float64."""
        raise NotImplementedError

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(steps,) float64: alpha^2."""
        return torch.cumprod(1 - self.betas, dim=0)

    # One entry more than there are steps: index t + 1, so that the clean time -1 is entry 0.
    @cached_property
    def _alpha(self) -> Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.sqrt()])

    @cached_property
    def _sigma(self) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), (1 - self.alphas_cumprod).sqrt()])

    clean = -1.0

    @property
    def tick(self) -> float:
        return 1.0

    def _index(self, t: Tensor) -> Tensor:
        t = times(t)
        index = t.round().long() + 1
        if bool(((t != t.round()) | (index < 0) | (index > self.steps)).any()):
            raise UsageError(f"times of this schedule are whole numbers in -1..{self.steps - 1}, got {t}")
        return index

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha[self._index(t)]

    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma[self._index(t)]

    def rates(self, t: Tensor) -> Rates:
        """u is the angle of (alpha, sigma) = (cos u, sin u)."""
        return Rates(-self.sigma(t), self.alpha(t))

    def grid(self, steps: int) -> Tensor:
        kept = respaced(self.steps, steps)
        return torch.tensor([*reversed(kept), self.clean], dtype=torch.float64)

    def log_snr_grid(self, steps: int) -> Tensor:
        kept = even_in_log_snr((self._alpha[1:] / self._sigma[1:]).log().numpy(), steps)
        return torch.tensor([*reversed(kept), self.clean], dtype=torch.float64)

    def at(self, u: Tensor) -> Tensor:
        return (times(u) * self.steps).floor().clamp(0, self.steps - 1)

    def network_time(self, t: Tensor) -> Tensor:
        return times(t) * (NETWORK_TIME_MAX / self.steps)


@dataclass(frozen=True)
class LinearBeta(BetaSchedule, name="linear"):
    """The paper's: betas linear from 1e-4 to 0.02, scaled by 1000 / steps (Ho et al. 2020)."""

    beta_start: float = field(1e-4, gt=0, lt=1, doc="the first beta, of 1000 steps")
    beta_end: float = field(0.02, gt=0, lt=1, doc="the last beta, of 1000 steps")

    @cached_property
    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        start, end = scale * self.beta_start, scale * self.beta_end
        return torch.linspace(start, end, self.steps, dtype=torch.float64).clamp(max=MAX_BETA)


@dataclass(frozen=True)
class QuadraticBeta(BetaSchedule, name="quadratic"):
    """Betas whose square roots are linear, between the same ends (the DDPM code's "quad"; latent
    diffusion uses it with 0.00085 and 0.012)."""

    beta_start: float = field(1e-4, gt=0, lt=1, doc="the first beta, of 1000 steps")
    beta_end: float = field(0.02, gt=0, lt=1, doc="the last beta, of 1000 steps")

    @cached_property
    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        start, end = math.sqrt(scale * self.beta_start), math.sqrt(scale * self.beta_end)
        return (torch.linspace(start, end, self.steps, dtype=torch.float64) ** 2).clamp(max=MAX_BETA)


@dataclass(frozen=True)
class CosineBeta(BetaSchedule, name="cosine"):
    """alpha^2(t) = cos^2((t / steps + 0.008) / 1.008 * pi / 2) (Nichol & Dhariwal 2021, eq. 17)."""

    offset: float = field(0.008, ge=0, lt=1, doc="s of equation 17: keeps the first betas from vanishing")

    @cached_property
    def betas(self) -> Tensor:
        u = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alpha2 = torch.cos((u + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - alpha2[1:] / alpha2[:-1]).clamp(max=MAX_BETA)


@dataclass(frozen=True)
class LinearFlow(Schedule, name="flow"):
    """x_t = (1 - t) x_0 + t eps, t in [0, 1] (Lipman et al. 2023; Liu et al. 2023).

    `steps` is the resolution of the chain that the variational bound is taken over; sampling may use
    any number of steps.
    """

    clean = 0.0

    @property
    def tick(self) -> float:
        return 1 / self.steps

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - times(t)

    def sigma(self, t: Tensor) -> Tensor:
        return times(t)

    def rates(self, t: Tensor) -> Rates:
        one = torch.ones_like(times(t))
        return Rates(-one, one)

    def grid(self, steps: int) -> Tensor:
        if steps < 1:
            raise UsageError(f"steps must be at least 1, got {steps}")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def log_snr_grid(self, steps: int) -> Tensor:
        grid = self.grid(steps)
        inner = torch.linspace(*LOG_SNR_CUT, steps + 1, dtype=torch.float64)[1:-1]
        grid[1:-1] = torch.sigmoid(-inner)  # t = sigma = 1 / (1 + alpha / sigma)
        return grid

    def at(self, u: Tensor) -> Tensor:
        return times(u)

    def network_time(self, t: Tensor) -> Tensor:
        return times(t) * NETWORK_TIME_MAX


@dataclass(frozen=True)
class Interpolant(LinearFlow, name="interpolant"):
    """The linear flow of a network that is told alpha, in [0, 1]: SiT's (Ma et al. 2024)."""

    def network_time(self, t: Tensor) -> Tensor:
        return 1 - times(t)


def coefficient(value: Tensor, like: Tensor) -> Tensor:
    """A coefficient, () or (N,), shaped to multiply `like` (N, ...) and in its dtype and device."""
    value = value.to(like.device, like.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


class Transition(NamedTuple):
    """The Gaussian chain between two times t > s, for any schedule (DDPM, eq. 7, without unit variance):

        q(x_s | x_t, x_0) = N(x0_weight x_0 + xt_weight x_t, variance)
        sigma^2_{t|s} = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2            ("beta" of the pair)
        variance = sigma^2_{t|s} sigma_s^2 / sigma_t^2

    On a respaced grid these are the respaced betas and posteriors, exactly.
    """

    beta: Tensor
    variance: Tensor
    x0_weight: Tensor
    xt_weight: Tensor


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> Transition:
    """The chain's step from t to s; t, s () or (N,)."""
    ratio = schedule.alpha(t) / schedule.alpha(s)
    variance_t, variance_s = schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
    beta = variance_t - ratio**2 * variance_s
    return Transition(
        beta=beta,
        variance=beta * variance_s / variance_t,
        x0_weight=schedule.alpha(s) * beta / variance_t,
        xt_weight=ratio * variance_s / variance_t,
    )
