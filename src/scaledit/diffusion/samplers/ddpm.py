"""DDPM: x_s ~ N(mean of q(x_s | x_t, x0), learned or fixed variance)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scaledit.diffusion.parameterization import posterior_log_variance
from scaledit.diffusion.samplers.base import Sampler, factor, rows
from scaledit.diffusion.schedule import MOST_STEPS, broadcast_like, transition
from scaledit.part import field

if TYPE_CHECKING:
    import torch
else:
    from scaledit.lazy import torch


@dataclass(frozen=True)
class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2). The variance is the denoiser's where it is learned,
    otherwise `variance`: "large" (beta of the step, ADM's choice) or "small" (the posterior's)."""

    steps: int = field(250, ge=1, le=MOST_STEPS, doc="steps of the grid")
    variance: Literal["large", "small"] = field(
        "large", doc="where it is not learned: beta, or the posterior's"
    )

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        schedule = denoiser.schedule
        chain = transition(schedule, t, s)
        x0, _, learned = denoiser(x, t, condition)
        mean = factor(chain.x0_weight, x) * x0 + factor(chain.xt_weight, x) * x
        last = schedule.sigma(s) == 0
        if bool(last.all()):
            return mean, None
        if bool(last.any()):  # these rows get no noise; a pair of times that is any other's stands for theirs
            other = int(last.logical_not().nonzero()[0])
            t, s = torch.where(last, t[other], t), torch.where(last, s[other], s)
        if learned is not None:
            log_variance = learned(t, s)  # elementwise, or one number for each row
            if log_variance.ndim < x.ndim:
                log_variance = broadcast_like(log_variance, x)
            deviation = torch.exp(0.5 * log_variance)
        elif self.variance == "large":
            deviation = factor((0.5 * transition(schedule, t, s).beta.log()).exp(), x)
        else:
            deviation = factor((0.5 * posterior_log_variance(schedule, t, s)).exp(), x)
        noisy = mean + deviation * noise(~last)
        return (torch.where(rows(last, x), mean, noisy) if bool(last.any()) else noisy), None
