"""UniPC-2 (Zhao et al. 2023): DPM-Solver++(2M)'s step, made again once x0 is known at its end too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.diffusion.samplers.base import factor, rows, weights
from scaledit.diffusion.samplers.multistep import (
    Known,
    Multistep,
    exponential_step,
    extrapolated,
    log_ratio,
    nothing_known,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class Step(NamedTuple):
    """A step that was made and may be made again: where it began, x (N, C, H, W), alpha and sigma (N,), what
    was known there, and of the time before that."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    began: Known
    before: Known


@dataclass(frozen=True)
class UniPC(Multistep, name="unipc"):
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

    def init(self, x):
        one = torch.ones(len(x), dtype=torch.float64)
        return Step(torch.zeros_like(x), one, one, nothing_known(x), nothing_known(x))

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        start, end = weights(denoiser.schedule, t), weights(denoiser.schedule, s)
        here = Known(denoiser(x, t, condition).x0, log_ratio(start))
        first = i == 0
        if not bool(first.all()):
            again = _corrected(state, here, start)
            x = torch.where(rows(first, x), x, again) if bool(first.any()) else again
        direction = extrapolated(here, state.began, log_ratio(end) - here.log_snr)
        return exponential_step(x, direction, start, end), Step(x, *start, here, state.began)


def _corrected(made: Step, end: Known, there: tuple[Tensor, Tensor]) -> Tensor:
    """x at the end of a step, whose alpha and sigma are `there`, made again with x0 known there."""
    (x0, log_snr), before = made.began, made.before
    h = end.log_snr - log_snr
    r = (before.log_snr - log_snr) / h
    phi_1 = torch.expm1(-h)  # -h phi_1(-h), and so on: the common factor falls out of b1 and b2
    phi_2 = -phi_1 / h - 1
    phi_3 = -phi_2 / h - 1 / 2
    b1, b2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    c1 = (b1 - b2) / (1 - r)
    known = before.log_snr.isfinite()
    of_before, of_end = torch.where(known, c1 / r, 0), torch.where(known, b1 - c1, 0.5)
    direction = x0 + factor(of_before, x0) * (before.x0 - x0) + factor(of_end, x0) * (end.x0 - x0)
    ratio = there[1] / made.sigma
    return factor(ratio, x0) * made.x + factor(there[0] - made.alpha * ratio, x0) * direction
