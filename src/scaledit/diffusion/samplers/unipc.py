"""UniPC-2 (Zhao et al. 2023): a step of DPM-Solver++(2M), corrected when x0 at its end is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scaledit.diffusion.samplers.base import factor, row_mask
from scaledit.diffusion.samplers.multistep import (
    Estimate,
    Multistep,
    log_ratio,
    no_estimate,
    second_order_step,
)
from scaledit.lazy import Tensor, torch


class Step(NamedTuple):
    """A step that can be corrected: x (N, C, H, W), alpha and sigma (N,) and the estimate at its start, and
    the estimate at the time before."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    current: Estimate
    previous: Estimate


@dataclass(frozen=True)
class UniPC(Multistep, name="unipc"):
    """UniPC-2 with B(h) = e^h - 1, in x0 (Zhao et al. 2023): one evaluation per step, and from about 12 steps
    a smaller error than DPM-Solver++(2M). The corrector raises the predictor's order from 2 to 3 on steps
    even in lambda; on a linear flow, which starts at lambda = -infinity, the measured order is 2.

    The predictor is DPM-Solver++(2M). The next step evaluates x0_s at the end s of the predictor's step; the
    corrector then repeats the step with

        D = x0_t + c1 (x0_prev - x0_t) / r + c2 (x0_s - x0_t)        r = (lambda_prev - lambda_t) / h
        c1 + c2 = b1,  c1 r + c2 = b2        b_k = k! phi_{k+1}(-h) / phi_1(-h)

    and the next step starts from the result, reusing x0_s: the corrector costs no evaluation. A step without
    a predecessor has c2 = 1/2. The last step is not corrected, since nothing is evaluated at its end.
    """

    def init(self, x):
        ones = torch.ones(len(x), dtype=torch.float64)
        return Step(torch.zeros_like(x), ones, ones, no_estimate(x), no_estimate(x))

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        start, end = denoiser.schedule.coefficients(t), denoiser.schedule.coefficients(s)
        current = Estimate(denoiser(x, t, condition).x0, log_ratio(start))
        first = i == 0
        if not bool(first.all()):
            corrected = _correct(state, current, start)
            x = torch.where(row_mask(first, x), x, corrected) if bool(first.any()) else corrected
        x_s = second_order_step(x, current, state.current, start, end)
        return x_s, Step(x, *start, current, state.current)


def _correct(step: Step, end: Estimate, coefficients: tuple[Tensor, Tensor]) -> Tensor:
    """x at the end of `step`, repeated with the estimate there. coefficients: alpha and sigma at the end."""
    (x0, log_snr), previous, (alpha, sigma) = step.current, step.previous, coefficients
    h = end.log_snr - log_snr
    r = (previous.log_snr - log_snr) / h
    phi_1 = torch.expm1(-h)  # -h phi_1(-h) and so on: the common factor cancels in b1 and b2
    phi_2 = -phi_1 / h - 1
    phi_3 = -phi_2 / h - 1 / 2
    b1, b2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    c1 = (b1 - b2) / (1 - r)
    known = previous.log_snr.isfinite()
    w_previous, w_end = torch.where(known, c1 / r, 0), torch.where(known, b1 - c1, 0.5)
    direction = x0 + factor(w_previous, x0) * (previous.x0 - x0) + factor(w_end, x0) * (end.x0 - x0)
    ratio = sigma / step.sigma
    return factor(ratio, x0) * step.x + factor(alpha - step.alpha * ratio, x0) * direction
