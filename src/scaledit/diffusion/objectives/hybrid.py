"""The paper's objective, which also trains the variance of a step.

    L_vlb  = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  s one tick below t;  -log p(x_0 | x_1) at the first
    Hybrid = L_simple + L_vlb, the mean detached inside L_vlb               (Nichol & Dhariwal 2021, eq. 16)

in bits per dimension, unscaled, as in the paper. At the first time the likelihood is that of pixels
discretized to 8 bits, for latents too, as in the official code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.objectives.base import Losses, OfOneOutput, mean, squared_error
from scaledit.diffusion.parameterization import LearnedRange, posterior_log_variance
from scaledit.diffusion.schedule import as_time, broadcast_like, transition
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch


@dataclass(frozen=True)
class Hybrid(OfOneOutput, name="hybrid"):
    """The paper's objective. Raises UsageError if the parameterization is not a LearnedRange."""

    learns_variance: ClassVar[bool] = True

    def fits(self, schedule, parameterization):
        if not isinstance(parameterization, LearnedRange):
            raise UsageError(
                "the hybrid objective trains a variance, but this denoiser predicts none; wrap its "
                "parameterization in LearnedRange (learn_sigma), or use the simple objective"
            )

    def error(self, denoiser, out, x0, eps, x_t, t):
        return squared_error(denoiser, out, x0, eps, t)

    def losses(self, denoiser, out, x0, eps, x_t, t) -> Losses:
        mse, c = self.error(denoiser, out, x0, eps, x_t, t), x0.shape[1]
        frozen = torch.cat([out[:, :c].detach(), out[:, c:]], dim=1)
        vlb = variational_bound(denoiser, frozen, x0, x_t, t)
        return Losses(mse + vlb, mse, vlb)


def variational_bound(denoiser: NetDenoiser, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The variational bound's term at t, (N,), in bits per dimension, for the network output `out`."""
    schedule = denoiser.schedule
    t = as_time(t)
    # The KL term grows without bound as s nears clean: a step that ends within a tick of it is the last one.
    s = t - schedule.dt
    s = torch.where(s < schedule.clean + schedule.dt * (1 - 1e-9), schedule.clean, s)
    chain = transition(schedule, t, s)
    x0_weight, xt_weight = broadcast_like(chain.x0_weight, x0), broadcast_like(chain.xt_weight, x0)
    predicted = denoiser.decode(out, x_t, t)
    assert predicted.log_variance is not None  # always set by LearnedRange
    predicted_mean, log_variance = x0_weight * predicted.x0 + xt_weight * x_t, predicted.log_variance(t, s)
    true_log_variance = broadcast_like(posterior_log_variance(schedule, t, s), x0)
    kl = _gaussian_kl(x0_weight * x0 + xt_weight * x_t, true_log_variance, predicted_mean, log_variance)
    nll = -discretized_log_likelihood(x0, predicted_mean, 0.5 * log_variance)
    first = (schedule.sigma(s) == 0).to(x0.device)
    return torch.where(first, mean(nll), mean(kl)) / math.log(2)


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
    """DDPM's tanh approximation."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log probability in nats, elementwise, of x's bin under N(mean, exp(log_scale)^2), with 256 equal bins
    over [-1, 1] of which the outermost are open-ended (Ho et al. 2020, eq. 13)."""
    centered, inverse_scale = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf((centered + 1 / 255) * inverse_scale)
    lower = _normal_cdf((centered - 1 / 255) * inverse_scale)
    first = upper.clamp(min=1e-12).log()
    last, inner = (1 - lower).clamp(min=1e-12).log(), (upper - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, inner))
