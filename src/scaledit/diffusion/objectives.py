"""Training objectives and the distributions of the training time.

    L_simple = || target - out ||^2                                        (Ho et al. 2020, eq. 14)
    L_vlb    = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  s one tick below t;  -log p(x_0 | x_1) at the first
    Hybrid   = L_simple + L_vlb, the mean detached inside L_vlb             (Nichol & Dhariwal 2021, eq. 16)

in bits per dimension, unscaled, as the paper trains. At the first time the likelihood is that of pixels
discretised to 8 bits, on latents too: that is what the official runs did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.parameterization import LearnedRange, posterior_log_variance
from scaledit.diffusion.schedule import Schedule, coefficient, times, transition
from scaledit.errors import UsageError
from scaledit.part import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class Losses(NamedTuple):
    """Per sample, (N,): what is minimised, and its parts. vlb is None where the objective has none."""

    total: Tensor
    mse: Tensor
    vlb: Tensor | None


class Objective(Part, kind="objective", home="scaledit.diffusion.objectives", needs=("__call__",)):
    learns_variance: ClassVar[bool] = False
    """Whether the network has a variance on further channels, which this objective trains."""

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor) -> Losses:
        raise NotImplementedError


def diffuse(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) eps."""
    return coefficient(schedule.alpha(t), x0) * x0 + coefficient(schedule.sigma(t), x0) * eps


def _mean(x: Tensor) -> Tensor:
    """Over all but the batch."""
    return x.flatten(1).mean(1)


@dataclass(frozen=True)
class Simple(Objective, name="simple"):
    """Mean squared error on the parameterization's target; a learned variance is left untrained."""

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor) -> Losses:
        x_t = diffuse(denoiser.schedule, x0, eps, t)
        out = denoiser.output(x_t, t, y)[:, : x0.shape[1]]
        mse = _mean((denoiser.parameterization.target(denoiser.schedule, x0, eps, t) - out) ** 2)
        return Losses(mse, mse, None)


@dataclass(frozen=True)
class Hybrid(Objective, name="hybrid"):
    """The paper's objective; needs a LearnedRange parameterization. Raises UsageError without one."""

    learns_variance = True

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor) -> Losses:
        if not isinstance(denoiser.parameterization, LearnedRange):
            raise UsageError(
                "the hybrid objective trains a variance, and this denoiser has none: wrap its "
                "parameterization in LearnedRange (learn_sigma), or use the simple objective"
            )
        schedule, c = denoiser.schedule, x0.shape[1]
        x_t = diffuse(schedule, x0, eps, t)
        out = denoiser.output(x_t, t, y)
        mse = _mean((denoiser.parameterization.target(schedule, x0, eps, t) - out[:, :c]) ** 2)
        frozen = torch.cat([out[:, :c].detach(), out[:, c:]], dim=1)
        vlb = variational_bound(denoiser, frozen, x0, x_t, t)
        return Losses(mse + vlb, mse, vlb)


def variational_bound(denoiser: NetDenoiser, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of the variational bound, (N,), in bits per dimension, for the network output `out`."""
    schedule = denoiser.schedule
    t = times(t)
    # A continuous time less than one tick above the first would end just short of clean, where the bound
    # grows without limit; such a step counts as the last one, to clean.
    s = t - schedule.tick
    s = torch.where(s < schedule.clean + schedule.tick * (1 - 1e-9), schedule.clean, s)
    chain = transition(schedule, t, s)
    x0_weight, xt_weight = coefficient(chain.x0_weight, x0), coefficient(chain.xt_weight, x0)
    predicted = denoiser.decode(out, x_t, t)
    assert predicted.log_variance is not None  # LearnedRange gives one
    mean, log_variance = x0_weight * predicted.x0 + xt_weight * x_t, predicted.log_variance(t, s)
    true_log_variance = coefficient(posterior_log_variance(schedule, t, s), x0)
    kl = _gaussian_kl(x0_weight * x0 + xt_weight * x_t, true_log_variance, mean, log_variance)
    nll = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
    first = (schedule.sigma(s) == 0).to(x0.device)
    return torch.where(first, _mean(nll), _mean(kl)) / math.log(2)


def _gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that DDPM's code uses, to be equal to it."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log probability in nats, elementwise, that N(mean, exp(log_scale)^2) gives to the bin of x among 256
    equal bins over [-1, 1], the outermost open-ended (Ho et al. 2020, eq. 13)."""
    centred, inverse_scale = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf((centred + 1 / 255) * inverse_scale)
    lower = _normal_cdf((centred - 1 / 255) * inverse_scale)
    smallest = 1e-12
    return torch.where(
        x < -0.999,
        upper.clamp(min=smallest).log(),
        torch.where(
            x > 0.999, (1 - lower).clamp(min=smallest).log(), (upper - lower).clamp(min=smallest).log()
        ),
    )
