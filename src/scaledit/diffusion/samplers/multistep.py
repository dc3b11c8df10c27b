"""What DPM-Solver and UniPC share: steps that are exact if x0 is a polynomial in lambda = log(alpha / sigma).

x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D
D   = x0 + (x0 - x0_prev) h / (2 (lambda_t - lambda_prev)),    h = lambda_s - lambda_t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scaledit.diffusion.samplers.base import Sampler, factor
from scaledit.diffusion.schedule import MOST_STEPS
from scaledit.diffusion.times import Auto, Times
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class Multistep(Sampler):
    """Multistep samplers. By default times are even in lambda on beta schedules and even in t on flows."""

    steps: int = field(20, ge=1, le=MOST_STEPS, doc="steps of the grid")
    times: Times = field(Auto(), doc="how the times of the grid are chosen")


class Estimate(NamedTuple):
    """A denoiser's x0 (N, C, H, W) at a time, and that time's lambda, (N,) float64 on the CPU: minus infinity
    where alpha = 0, nan in rows that have no such time."""

    x0: Tensor
    log_snr: Tensor


def no_estimate(x: Tensor) -> Estimate:
    """The previous estimate of rows at their first step."""
    return Estimate(torch.zeros_like(x), torch.full((len(x),), torch.nan, dtype=torch.float64))


def log_ratio(coefficients: tuple[Tensor, Tensor]) -> Tensor:
    """lambda (N,) of (alpha, sigma)."""
    alpha, sigma = coefficients
    return (alpha / sigma).log()


def second_order_step(
    x: Tensor,
    current: Estimate,
    previous: Estimate,
    start: tuple[Tensor, Tensor],
    end: tuple[Tensor, Tensor],
) -> Tensor:
    """x_s, with (alpha, sigma) of t and s as `start` and `end`. First order, D = x0, in rows without a
    previous estimate or with an infinite lambda."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end
    direction, h = current.x0, log_ratio(end) - current.log_snr
    weight = h / (2 * (current.log_snr - previous.log_snr))
    weight = torch.where(previous.log_snr.isfinite() & current.log_snr.isfinite() & h.isfinite(), weight, 0)
    if bool(weight.any()):
        direction = direction + (direction - previous.x0) * factor(weight, x)
    return factor(sigma_s / sigma_t, x) * x + factor(alpha_s - alpha_t * sigma_s / sigma_t, x) * direction
