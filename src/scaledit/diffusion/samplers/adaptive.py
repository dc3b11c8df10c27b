"""Heun's method with error control: each image takes its own steps, as many as its tolerance needs.

    x'    = x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps                    Euler's step, order 1
    e     = (alpha_s - alpha_t) (x0' - x0) / 2 + (sigma_s - sigma_t) (eps' - eps) / 2    x0', eps' at (x', s)
    x_s   = x' + e                                                                  Heun's step, order 2
    error = rms(e / (atol + rtol max(|x|, |x_s|)))             accepted if at most 1
    h     <- h min(5, max(0.2, 0.9 / sqrt(error)))             e is of the order h^2

A call of `step` is one evaluation: of each row at its own x and t, or at its own x' and s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from scaledit.diffusion.samplers.base import Pace, Sampler, factor, row_mask
from scaledit.diffusion.times import Even, Times
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import field

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 5.0
"""Of the change of a step's length: a factor, and bounds."""
LAST = 1e-3
"""The fraction of a continuous schedule at which the last evaluation is made, which leads on to the image; on
a chain it is the time 0."""


class State(NamedTuple):
    """t, s (N,) float64: the time reached, and the end of the step that is tried. h: the length of the next
    step. trying (N,) bool: whether the next evaluation is at s. grows (N,) bool: whether the step may grow,
    which it may not after a rejection. x0, eps (N, C, H, W): the prediction at t. trial: x' at s."""

    t: Tensor
    s: Tensor
    h: Tensor
    trying: Tensor
    grows: Tensor
    done: Tensor
    evaluations: Tensor
    x0: Tensor
    eps: Tensor
    trial: Tensor


@dataclass(frozen=True)
class Adaptive(Sampler, name="adaptive"):
    """Heun's method with Euler's embedded in it and steps of a length that keeps their difference below a
    tolerance (Hairer, Nørsett & Wanner 1993, section II.4; for diffusion Jolicoeur-Martineau et al. 2021,
    arXiv 2105.14080). Two evaluations per step, one more per rejected step.

    Each image has its own steps and leaves the batch when it is finished; samples state the evaluations
    that were spent. The error of the images is about proportional to the tolerance. On a beta schedule steps
    end at whole times, and a step from a time to the next one is always accepted.
    """

    evaluations: ClassVar[int] = 2
    paced: ClassVar[bool] = True

    steps: int = field(1, inner=True)
    times: Times = field(Even(), inner=True)
    rtol: float = field(0.01, ge=0, doc="tolerance of a step's error, relative to the pixel")
    atol: float = field(0.01, gt=0, doc="absolute tolerance; one of 256 gray levels is 0.008")
    first: float = field(0.05, gt=0, le=1, doc="length of the first step that is tried, of the whole time")
    max_evaluations: int = field(1000, ge=3, doc="evaluations for an image after which sampling fails")

    def check(self, where: str = "") -> None:
        super().check(where)
        if self.steps != 1:
            raise UsageError(f"{where}steps: adaptive chooses its own steps; set rtol and atol")

    @property
    def ticks(self) -> int:
        return 100

    def total_evaluations(self) -> int:
        """The most that it may spend."""
        return self.max_evaluations

    def evaluated(self, schedule):
        starts = Even().grid(schedule, min(self.max_evaluations, schedule.steps))[:-1]
        return starts[torch.linspace(0, len(starts) - 1, self.max_evaluations).long()]

    def init(self, x):
        zeros, no = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.bool)
        return State(zeros, zeros, zeros, no, ~no, no, torch.zeros(len(x), dtype=torch.int64), x, x, x)

    def pace(self, state: State) -> Pace:
        return Pace(state.t, state.done, state.evaluations, self.max_evaluations)

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        """t, s: where the rows begin and end, not the ends of a step."""
        schedule, clean = denoiser.schedule, s
        last = torch.zeros_like(s) if schedule.discrete else s + LAST * schedule.horizon
        now = torch.where(i == 0, t, state.t)
        h = torch.where(i == 0, self.first * (t - s), state.h)
        trying, evaluations = state.trying, state.evaluations + 1

        mask = row_mask(trying, x)
        x0, eps, _ = denoiser(torch.where(mask, state.trial, x), torch.where(trying, state.s, now), condition)

        # Rows whose trial was evaluated: accept or reject it.
        d_alpha, d_sigma = _changes(schedule, now, torch.where(trying, state.s, now), x)
        error = d_alpha * (x0 - state.x0) / 2 + d_sigma * (eps - state.eps) / 2
        heun = state.trial + error
        size = (error / (self.atol + self.rtol * torch.maximum(x.abs(), heun.abs()))).flatten(1)
        size = size.square().mean(1).sqrt().to("cpu", torch.float64)
        step = now - state.s
        accepted = trying & ((size <= 1) | (schedule.discrete & (step <= 1)))
        change = (SAFETY / size.clamp(min=1e-12).sqrt()).clamp(SMALLEST, LARGEST)
        change = torch.where(accepted & ~state.grows, change.clamp(max=1), change)
        h = torch.where(trying, step * torch.where(accepted, change, change.clamp(max=SAFETY)), h)
        done = accepted & (state.s <= last)
        # The prediction at (x', s) leads from next to the image to the image.
        d_alpha, d_sigma = _changes(
            schedule, torch.where(done, state.s, now), torch.where(done, clean, now), x
        )
        end = torch.where(row_mask(done, x), heun + d_alpha * x0 + d_sigma * eps, heun)
        broken = row_mask(trying & size.isnan(), x)  # shown to the loop, which stops
        x = torch.where(row_mask(accepted, x) | broken, end, x)
        now = torch.where(accepted, torch.where(done, clean, state.s), now)

        # The others: an Euler step from x, of this prediction, or of that at t.
        arrived = row_mask(~trying, x)
        x0, eps = torch.where(arrived, x0, state.x0), torch.where(arrived, eps, state.eps)
        tries = ~accepted
        target = now - (h.floor().clamp(min=1) if schedule.discrete else h)
        target = torch.where(tries, torch.maximum(target, last), now)
        d_alpha, d_sigma = _changes(schedule, now, target, x)
        trial = x + d_alpha * x0 + d_sigma * eps
        x = torch.where(row_mask(tries, x) & ~torch.isfinite(trial), trial, x)
        return x, State(now, target, h, tries, accepted | ~trying, done, evaluations, x0, eps, trial)


def _changes(schedule, t: Tensor, s: Tensor, like: Tensor):
    """alpha_s - alpha_t and sigma_s - sigma_t as factors of `like`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t), schedule.coefficients(s)
    return factor(alpha_s - alpha_t, like), factor(sigma_s - sigma_t, like)
