"""Samplers: from noise to image along a schedule, over any denoiser. Each chooses its times, its `grid`, and
is one `step` from t to s < t.

    flow      dx_t = x0 d alpha + eps d sigma
    Euler     x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps
    Heun      the same with x0, eps averaged over both ends of the step
    DDIM      x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z     v = Var q(x_s | x_t, x_0)
    DDPM      x_s ~ N(mean of q(x_s | x_t, x0), learned or fixed variance)
    DPMSolver x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D     D from two x0's
    UniPC     the same, and every step but the last made again with D from three x0's, its own end's too

Writing the flow with d alpha and d sigma, not dt, needs no derivative and no division, and holds for every
schedule up to both of its ends; one Euler step of it is one DDIM step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.parameterization import posterior_log_variance
from scaledit.diffusion.schedule import MOST_STEPS, BetaSchedule, Schedule, transition
from scaledit.errors import RunError, UsageError
from scaledit.part import Part, field

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class NoiseSource(Protocol):
    """Where a sampler's random numbers come from; see `scaledit.diffusion.noise.Noise`."""

    def initial(self) -> Tensor:
        """Standard normal (N, C, H, W): where sampling starts."""
        ...

    def step(self, i: int) -> Tensor:
        """Standard normal, as `initial`, for sampling step i = 0, 1, ..."""
        ...


@dataclass(frozen=True)
class Sampler(Part, kind="sampler", home="scaledit.diffusion.samplers", needs=("step",)):
    """steps: of the grid; the evaluations of the denoiser too, except where a sampler says otherwise."""

    steps: int = field(50, ge=1, le=MOST_STEPS, doc="steps of the grid")

    def grid(self, schedule: Schedule) -> Tensor:
        """(steps + 1,) descending times, the last one clean: on chains the official respaced ones, both ends
        included. Raises UsageError for a number of steps that the schedule does not have."""
        return schedule.grid(self.steps)

    def total_evaluations(self) -> int:
        """Of the denoiser, from noise to image."""
        return self.steps

    def init(self, x: Tensor) -> Any:
        """The state before the first step (multistep methods remember; others pass None)."""
        return None

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
        raise NotImplementedError


class NonFiniteError(RunError):
    """A sampler's numbers stopped being finite. rows: (N',) of the batch's rows, those that were the first.
    step: the sampling step that made them so, from 0, or -1 where the noise came so. t, s: its times."""

    def __init__(self, rows: list[int], step: int, steps: int, t: float, s: float):
        self.rows, self.step, self.steps, self.t, self.s = rows, step, steps, t, s
        super().__init__(self.said("row" if len(rows) == 1 else "rows", rows))

    def said(self, what: str, numbers: Sequence[int]) -> str:
        """The message, with the rows under whatever names the caller has for them."""
        some = ", ".join(map(str, numbers[:NAMED]))
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        if self.step < 0:
            return f"the noise that sampling starts from is not finite in {what} {some}{more}"
        return (
            f"sampling gave numbers that are not finite: first in step {self.step + 1} of {self.steps}, from "
            f"time {self.t:g} to {self.s:g}, in {what} {some}{more}"
        )


NAMED = 8
"""Rows that a message names, at most."""


class _FirstNonFinite:
    """The step at which each row of a batch first was not finite. Kept where the images are, so that a GPU is
    not waited for in every step, but once, after the last; a CPU needs no waiting and is asked at once. One
    pass over x a step, next to nothing beside a network's."""

    def __init__(self, grid: Tensor):
        self.grid, self.first = grid, None

    def see(self, x: Tensor, step: int) -> None:
        """Raises NonFiniteError where it is known at once."""
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if self.first is None:
            self.first = torch.full(bad.shape, len(self.grid), device=x.device)
        self.first = torch.where(bad, self.first.clamp(max=step), self.first)
        if x.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises NonFiniteError."""
        steps = len(self.grid) - 1
        first = [] if self.first is None else self.first.tolist()
        if first and (step := min(first)) <= steps:
            rows = [row for row, at in enumerate(first) if at == step]
            raise NonFiniteError(rows, step, steps, float(self.grid[step]), float(self.grid[step + 1]))


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

    Raises NonFiniteError, a RunError, that names the step and the rows where numbers first were not finite.
    """
    with torch.no_grad():
        x = noise.initial()
        grid = sampler.grid(denoiser.schedule)
        watch = _FirstNonFinite(grid)
        watch.see(x, -1)
        state = sampler.init(x)
        for i, (t, s) in enumerate(pairwise(grid)):
            x, state = sampler.step(denoiser, x, t, s, y, state, lambda i=i: noise.step(i))
            watch.see(x, i)
            if on_step is not None:
                on_step(i, x)
        watch.check()
    return x


def _weights(schedule: Schedule, t: Tensor) -> tuple[float, float]:
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def _predict(denoiser: Denoiser, x: Tensor, t: Tensor, y: Tensor | None):
    return denoiser(x, t.expand(x.shape[0]), y)


@dataclass(frozen=True)
class Euler(Sampler, name="euler"):
    """First order. On every schedule equal to DDIM with eta = 0, up to rounding."""

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_t, sigma_t = _weights(denoiser.schedule, t)
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        x0, eps, _ = _predict(denoiser, x, t, y)
        return x + (alpha_s - alpha_t) * x0 + (sigma_s - sigma_t) * eps, None


@dataclass(frozen=True)
class Heun(Sampler, name="heun"):
    """Second order, the trapezoidal rule on the flow: two evaluations a step, one in the last (Karras et
    al. 2022, algorithm 1, in this schedule's coordinates)."""

    steps: int = field(25, ge=1, le=MOST_STEPS, doc="steps of the grid, of two evaluations each")

    def total_evaluations(self) -> int:
        return 2 * self.steps - 1

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
class DDIM(Sampler, name="ddim"):
    """Song et al. 2021, eq. 12; eta = 0 is deterministic, eta = 1 has DDPM's posterior variance."""

    eta: float = field(0.0, ge=0, doc="0 is deterministic, 1 has the posterior's variance")

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        x0, eps, _ = _predict(denoiser, x, t, y)
        variance = self.eta**2 * float(transition(denoiser.schedule, t, s).variance)
        x = alpha_s * x0 + math.sqrt(max(sigma_s**2 - variance, 0)) * eps
        return (x + math.sqrt(variance) * noise() if variance > 0 else x), None


@dataclass(frozen=True)
class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2). The variance is the denoiser's where it is learned,
    otherwise `variance`: "large" (beta of the step, ADM's choice) or "small" (the posterior's)."""

    steps: int = field(250, ge=1, le=MOST_STEPS, doc="steps of the grid")
    variance: Literal["large", "small"] = field(
        "large", doc="where it is not learned: beta, or the posterior's"
    )

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
    """What a multistep method remembers of a time: x0 there, and lambda = log(alpha / sigma)."""

    x0: Tensor
    log_snr: float


@dataclass(frozen=True)
class _Multistep(Sampler):
    """Methods that are exact in lambda = log(alpha / sigma) where x0 is a polynomial of it, so that they like
    steps that are even in lambda.

    times: "even" in t (the schedule's own grid), or in "log_snr" (`Schedule.log_snr_grid`); "auto" is log_snr
    on chains of betas and even elsewhere. The official grid of a chain ends with t = 0: before it the step in
    lambda is some four times its predecessor, which x0 would be extrapolated over, and at 10 to 30 steps that
    makes a second-order method no better than DDIM.
    """

    steps: int = field(20, ge=1, le=MOST_STEPS, doc="steps of the grid")
    times: Literal["auto", "even", "log_snr"] = field("auto", doc="even in t or in log-SNR")

    def grid(self, schedule: Schedule) -> Tensor:
        if self.times not in ("auto", "even", "log_snr"):
            raise UsageError(f"times is {self.times!r}; it is one of auto, even, log_snr")
        in_log_snr = isinstance(schedule, BetaSchedule) if self.times == "auto" else self.times == "log_snr"
        return schedule.log_snr_grid(self.steps) if in_log_snr else schedule.grid(self.steps)


@dataclass(frozen=True)
class DPMSolver(_Multistep, name="dpm", title="DPM-Solver++"):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation a step.

    D = x0 + (x0 - x0_previous) h / (2 h_previous), h = lambda_s - lambda_t. The first step has no
    predecessor and the last ends at lambda = infinity; both are first order, which costs O(h^2) once. So is
    the second step of a linear flow, whose first time has lambda = -infinity; even steps in t are far from
    even in lambda there, and the measured order rises to 2 slowly (1.7 at 160 steps, 1.8 at 640).

    times: as `_Multistep` says: even in lambda on chains of betas, even in t on the linear flow.
    """

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


class _Step(NamedTuple):
    """A step that UniPC made and may make again: where it began (x, alpha, sigma, x0 and lambda), and the
    time before that, None where there is none with a finite lambda."""

    x: Tensor
    alpha: float
    sigma: float
    began: _Previous
    before: _Previous | None


@dataclass(frozen=True)
class UniPC(_Multistep, name="unipc"):
    """UniPC-2 with B(h) = e^h - 1, in x0 (Zhao et al. 2023): one evaluation a step, and from some 12 steps on
    a smaller error than DPM-Solver++(2M)'s. The corrector raises the predictor's order from 2 to 3 on steps
    even in lambda; on a linear flow, which begins at lambda = -infinity, the measured order is 2.

    The predictor is DPM-Solver++(2M). At the end s of its step x0_s is evaluated, as the next step needs it;
    the corrector then makes the step again with

        D = x0_t + c1 (x0_before - x0_t) / r + c2 (x0_s - x0_t)        r = (lambda_before - lambda_t) / h
        c1 + c2 = b1,  c1 r + c2 = b2        b_k = k! phi_{k+1}(-h) / phi_1(-h)

    and the next step begins there, with the x0_s that is known already: the corrector costs no evaluation. A
    step without a predecessor has c2 = 1/2. None follows the last step, where nothing is evaluated.
    """

    def step(self, denoiser, x, t, s, y, state, noise):
        alpha_t, sigma_t = _weights(denoiser.schedule, t)
        alpha_s, sigma_s = _weights(denoiser.schedule, s)
        here = _Previous(_predict(denoiser, x, t, y).x0, _log_snr(alpha_t, sigma_t))
        before = None
        if state is not None:
            x = _corrected(state, here, alpha_t, sigma_t)
            before = state.began if math.isfinite(state.began.log_snr) else None
        h = _log_snr(alpha_s, sigma_s) - here.log_snr
        direction = here.x0
        if before is not None and math.isfinite(h):
            direction = here.x0 + (here.x0 - before.x0) * (h / (2 * (here.log_snr - before.log_snr)))
        next_x = (sigma_s / sigma_t) * x + (alpha_s - alpha_t * sigma_s / sigma_t) * direction
        return next_x, _Step(x, alpha_t, sigma_t, here, before)


def _corrected(made: _Step, end: _Previous, alpha: float, sigma: float) -> Tensor:
    """x at the end of a step, whose alpha and sigma these are, made again with x0 known there."""
    (x0, log_snr), before = made.began, made.before
    towards_end = end.x0 - x0
    if before is None:
        direction = x0 + towards_end / 2
    else:
        h = end.log_snr - log_snr
        r = (before.log_snr - log_snr) / h
        phi_1 = math.expm1(-h)  # -h phi_1(-h), and so on: the common factor falls out of b1 and b2
        phi_2 = -phi_1 / h - 1
        phi_3 = -phi_2 / h - 1 / 2
        b1, b2 = phi_2 / phi_1, 2 * phi_3 / phi_1
        c1 = (b1 - b2) / (1 - r)
        direction = x0 + (c1 / r) * (before.x0 - x0) + (b1 - c1) * towards_end
    ratio = sigma / made.sigma
    return ratio * made.x + (alpha - made.alpha * ratio) * direction


def _log_snr(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), infinite at the clean end and minus infinity where no signal is left."""
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
