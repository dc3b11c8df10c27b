"""Samplers: from noise to image along a schedule, over any denoiser. Each is one `step` from t to s < t.

    flow      dx_t = x0 d alpha + eps d sigma
    Euler     x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps
    Heun      the same with x0, eps averaged over both ends of the step
    DDIM      x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z     v = Var q(x_s | x_t, x_0)
    DDPM      x_s ~ N(mean of q(x_s | x_t, x0), learned or fixed variance)
    DPMSolver x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D     D from two x0's

Writing the flow with d alpha and d sigma, not dt, needs no derivative and no division, and holds for every
schedule up to both of its ends; one Euler step of it is one DDIM step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.parameterization import posterior_log_variance
from scaledit.diffusion.schedule import Schedule, transition


class NoiseSource(Protocol):
    """Where a sampler's random numbers come from; see `scaledit.diffusion.noise.Noise`."""

    def initial(self) -> Tensor:
        """Standard normal (N, C, H, W): where sampling starts."""
        ...

    def step(self, i: int) -> Tensor:
        """Standard normal, as `initial`, for sampling step i = 0, 1, ..."""
        ...


class Sampler(Protocol):
    @property
    def steps(self) -> int: ...

    def init(self, x: Tensor) -> Any:
        """The state before the first step (multistep methods remember; others pass None)."""
        ...

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        y: Tensor | None,
        state: Any,
        noise: Callable[[], Tensor],
    ) -> tuple[Tensor, Any]:
        """x at time s from x at time t > s (scalar tensors), and the next state. `noise` is called only by
        the samplers that need it."""
        ...


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    noise: NoiseSource,
    y: Tensor | None = None,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The one sampling loop: (N, C, H, W) in the dtype and on the device of `noise.initial()`.

    y (N,) int64, or None for unconditional. `on_step(i, x)` is called after step i (progress, films).
    """
    x = noise.initial()
    grid = denoiser.schedule.grid(sampler.steps)
    state = sampler.init(x)
    for i, (t, s) in enumerate(pairwise(grid)):
        x, state = sampler.step(denoiser, x, t, s, y, state, lambda i=i: noise.step(i))
        if on_step is not None:
            on_step(i, x)
    return x


def _weights(schedule: Schedule, t: Tensor) -> tuple[float, float]:
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def _predict(denoiser: Denoiser, x: Tensor, t: Tensor, y: Tensor | None):
    return denoiser(x, t.expand(x.shape[0]), y)


@dataclass(frozen=True)
class Euler:
    """First order. On every schedule equal to DDIM with eta = 0, up to rounding."""

    steps: int = 50

    def init(self, x: Tensor) -> None:
        return None

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_t, sigma_t = _weights(denoiser.schedule, t)
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        x0, eps, _ = _predict(denoiser, x, t, y)
        return x + (alpha_s - alpha_t) * x0 + (sigma_s - sigma_t) * eps, None


@dataclass(frozen=True)
class Heun:
    """Second order, the trapezoidal rule on the flow: two evaluations a step, one in the last (Karras et
    al. 2022, algorithm 1, in this schedule's coordinates)."""

    steps: int = 25

    def init(self, x: Tensor) -> None:
        return None

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_t, sigma_t = _weights(denoiser.schedule, t)
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        d_alpha, d_sigma = alpha_s - alpha_t, sigma_s - sigma_t
        x0, eps, _ = _predict(denoiser, x, t, y)
        euler = x + d_alpha * x0 + d_sigma * eps
        if sigma_s == 0:  # no denoiser is defined on the clean image
            return euler, None
        x0_s, eps_s, _ = _predict(denoiser, euler, s, y)
        return x + d_alpha * (x0 + x0_s) / 2 + d_sigma * (eps + eps_s) / 2, None


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021, eq. 12; eta = 0 is deterministic, eta = 1 has DDPM's posterior variance."""

    steps: int = 50
    eta: float = 0.0

    def init(self, x: Tensor) -> None:
        return None

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        x0, eps, _ = _predict(denoiser, x, t, y)
        variance = self.eta**2 * float(transition(denoiser.schedule, t, s).variance)
        x = alpha_s * x0 + math.sqrt(max(sigma_s**2 - variance, 0)) * eps
        return (x + math.sqrt(variance) * noise() if variance > 0 else x), None


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (Ho et al. 2020, algorithm 2). The variance is the denoiser's where it is learned,
    otherwise `variance`: "large" (beta of the step, ADM's choice) or "small" (the posterior's)."""

    steps: int = 250
    variance: Literal["large", "small"] = "large"

    def init(self, x: Tensor) -> None:
        return None

    def step(self, denoiser, x, t, s, y, state, noise):
        schedule = denoiser.schedule
        chain = transition(schedule, t, s)
        x0, _, learned = _predict(denoiser, x, t, y)
        mean = float(chain.x0_weight) * x0 + float(chain.xt_weight) * x
        if float(schedule.sigma(s)) == 0:
            return mean, None
        if learned is not None:
            return mean + torch.exp(0.5 * learned(t, s)) * noise(), None
        log_variance = (
            chain.beta.log() if self.variance == "large" else posterior_log_variance(schedule, t, s)
        )
        return mean + math.exp(0.5 * float(log_variance)) * noise(), None


class _Previous(NamedTuple):
    """The last x0 of a multistep method, and the log signal-to-noise ratio lambda = log(alpha / sigma)."""

    x0: Tensor
    log_snr: float


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation a step.

    D = x0 + (x0 - x0_previous) h / (2 h_previous), h = lambda_s - lambda_t. The first step has no
    predecessor and the last ends at lambda = infinity; both are first order, which costs O(h^2) once. So is
    the second step of a linear flow, whose first time has lambda = -infinity; even steps in t are far from
    even in lambda there, and the measured order rises to 2 slowly (1.7 at 160 steps, 1.8 at 640).
    """

    steps: int = 20

    def init(self, x: Tensor) -> _Previous | None:
        return None

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_t, sigma_t = _weights(denoiser.schedule, t)
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        x0 = _predict(denoiser, x, t, y).x0
        log_snr = _log_snr(alpha_t, sigma_t)
        h = _log_snr(alpha_s, sigma_s) - log_snr
        direction = x0
        if state is not None and math.isfinite(h):
            direction = x0 + (x0 - state.x0) * (h / (2 * (log_snr - state.log_snr)))
        x = (sigma_s / sigma_t) * x + (alpha_s - alpha_t * sigma_s / sigma_t) * direction
        return x, _Previous(x0, log_snr)


def _log_snr(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), infinite at the clean end and minus infinity where no signal is left."""
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
