"""DDPM: x_s ~ N(mean of q(x_s | x_t, x0), learned or fixed variance)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaledit.diffusion.samplers.base import Sampler, factor, row_mask
from scaledit.diffusion.schedule import MOST_STEPS, broadcast_like, transition
from scaledit.lazy import torch
from scaledit.part import field


@dataclass(frozen=True)
class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2). The variance is the denoiser's if that is learned,
    and otherwise `variance`: "large" (the step's beta, ADM's choice) or "small" (the posterior's)."""

    steps: int = field(250, ge=1, le=MOST_STEPS, doc="steps of the grid")
    variance: Literal["large", "small"] = field(
        "large", doc="variance if it is not learned; large: beta, small: the posterior's"
    )

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        schedule = denoiser.schedule
        chain = transition(schedule, t, s)
        x0, _, learned = denoiser(x, t, condition)
        mean = factor(chain.x0_weight, x) * x0 + factor(chain.xt_weight, x) * x
        last = schedule.sigma(s) == 0
        if bool(last.all()):
            return mean, None
        some_last = bool(last.any())
        if some_last:  # their noise is discarded below; the times of another row keep its variance finite
            other = int(last.logical_not().nonzero()[0])
            t, s = torch.where(last, t[other], t), torch.where(last, s[other], s)
            chain = transition(schedule, t, s)
        if learned is not None:
            log_variance = learned(t, s)  # elementwise, or one value per row
            if log_variance.ndim < x.ndim:
                log_variance = broadcast_like(log_variance, x)
            deviation = torch.exp(0.5 * log_variance)
        else:
            variance = chain.beta if self.variance == "large" else chain.variance
            deviation = factor((0.5 * variance.log()).exp(), x)
        noisy = mean + deviation * noise(~last)
        return (torch.where(row_mask(last, x), mean, noisy) if some_last else noisy), None
