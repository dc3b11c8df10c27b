"""The loss of an autoencoder; all means are over the 3 H W pixel values of an image.

    L = mean |x - xhat| + kl_weight KL / (3 H W) + gradient_weight mean(|d_x (x - xhat)| + |d_y (x - xhat)|)

    KL = 1/2 sum over latents of  mean^2 + exp(logvar) - 1 - logvar            (nats per image)

kl_weight is on the scale of latent diffusion's 1e-6 (Rombach et al. 2022, appendix G), whose sums run over
pixels and latents. The last term compares differences of neighboring pixels: if blur removes a texture, it
is as large as the texture was. It costs a subtraction, while a perceptual loss needs a network to download.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from scaledit.autoencoders.config import LossConfig
from scaledit.data.posterior import kl_divergence


class AutoencoderLosses(NamedTuple):
    """The weighted sum and the unweighted terms, each (N,)."""

    total: Tensor
    l1: Tensor
    kl: Tensor
    gradient: Tensor


def losses(config: LossConfig, x: Tensor, xhat: Tensor, moments: Tensor) -> AutoencoderLosses:
    """The losses of images `x` with reconstructions `xhat`, (N, 3, H, W), and raw moments (N, 2C, h, w)."""
    l1 = _mean((x - xhat).abs())
    kl = kl_divergence(moments) / x[0].numel()
    gradient = gradient_difference(x, xhat)
    return AutoencoderLosses(l1 + config.kl_weight * kl + config.gradient_weight * gradient, l1, kl, gradient)


def gradient_difference(x: Tensor, xhat: Tensor) -> Tensor:
    """mean |d_x (x - xhat)| + mean |d_y (x - xhat)|, (N,); 0 for a constant offset."""
    error = x - xhat
    return _mean(error.diff(dim=-1).abs()) + _mean(error.diff(dim=-2).abs())


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
