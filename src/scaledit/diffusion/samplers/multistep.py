"""What DPM-Solver and UniPC share: steps that are exact where x0 is a polynomial of
lambda = log(alpha / sigma), and best on times that are even in lambda.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D
    D   = x0 + (x0 - x0_before) h / (2 (lambda_t - lambda_before)),    h = lambda_s - lambda_t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.diffusion.samplers.base import Sampler, factor
from scaledit.diffusion.schedule import MOST_STEPS
from scaledit.diffusion.times import Auto, Times
from scaledit.part import field

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


@dataclass(frozen=True)
class Multistep(Sampler):
    """Samplers that remember. Even in lambda on chains of betas, and even in t on flows."""

    steps: int = field(20, ge=1, le=MOST_STEPS, doc="steps of the grid")
    times: Times = field(Auto(), doc="which times the steps end at")


class Known(NamedTuple):
    """What is known of a time: x0 there (N, C, H, W), and lambda (N,) float64 on the CPU, which is minus
    infinity where no signal is left, and nan where there was no such time."""

    x0: Tensor
    log_snr: Tensor


def nothing_known(x: Tensor) -> Known:
    """For rows that are at their first step."""
    return Known(torch.zeros_like(x), torch.full((len(x),), torch.nan, dtype=torch.float64))


def log_ratio(here: tuple[Tensor, Tensor]) -> Tensor:
    """lambda (N,) of (alpha, sigma)."""
    return (here[0] / here[1]).log()


def extrapolated(here: Known, before: Known, h: Tensor) -> Tensor:
    """D: x0 in the middle of a step of length h (N,) in lambda, from here and the time before it. First
    order, x0 itself, where nothing is known of that, or a lambda is infinite."""
    weight = h / (2 * (here.log_snr - before.log_snr))
    weight = torch.where(before.log_snr.isfinite() & here.log_snr.isfinite() & h.isfinite(), weight, 0)
    if not bool(weight.any()):
        return here.x0
    return here.x0 + (here.x0 - before.x0) * factor(weight, here.x0)


def exponential_step(
    x: Tensor, direction: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]
) -> Tensor:
    """The exact solution of the flow between two times, of (alpha, sigma) each, for an x0 that is `direction`
    all the way."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end
    return factor(sigma_s / sigma_t, x) * x + factor(alpha_s - alpha_t * sigma_s / sigma_t, x) * direction
