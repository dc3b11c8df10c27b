"""The Gaussian posterior that an encoder predicts for an image, given by its raw moments.

z = scale (mean + exp(clamp(logvar, -30, 20) / 2) eps)
KL = 1/2 sum over latents of  mean^2 + exp(logvar) - 1 - logvar            (nats per image)
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""The range to which latent diffusion's autoencoders clamp the log variance."""


def split(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Raw moments (N, 2C, h, w) -> means and clamped log variances, each (N, C, h, w) float32."""
    mean, log_variance = moments.float().chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


def sample(moments: Tensor, eps: Tensor, scale: float = 1.0) -> Tensor:
    """Raw moments (N, 2C, h, w) and standard normal eps -> scaled latents (N, C, h, w)."""
    mean, log_variance = split(moments)
    return scale * (mean + torch.exp(0.5 * log_variance) * eps)


def kl_divergence(moments: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, (N,)."""
    mean, log_variance = split(moments)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
