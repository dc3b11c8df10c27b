"""What an autoencoder of one's own is trained on; all means are over an image's 3 H W pixel values.

    L = mean |x - xhat| + kl_weight KL / (3 H W) + gradient_weight mean(|d_x (x - xhat)| + |d_y (x - xhat)|)

    KL = 1/2 sum over latents of  mean^2 + exp(logvar) - 1 - logvar            (nats an image)

kl_weight is on the scale of latent diffusion's 1e-6 (Rombach et al. 2022, appendix G), whose sums run over
pixels and latents. The last term compares differences of neighbouring pixels: where blur loses a texture, it
is as large as the texture was. It costs a subtraction; a perceptual loss needs a network to download.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from scaledit.autoencoders.config import LossConfig
from scaledit.data.posterior import kl_divergence


class AutoencoderLosses(NamedTuple):
    """(N,) each: the weighted sum, and each term before its weight."""

    total: Tensor
    l1: Tensor
    kl: Tensor
    gradient: Tensor


def losses(config: LossConfig, x: Tensor, xhat: Tensor, moments: Tensor) -> AutoencoderLosses:
    """Images and reconstructions (N, 3, H, W), raw moments (N, 2C, h, w) -> what each image scores."""
    l1 = _mean((x - xhat).abs())
    kl = kl_divergence(moments) / x[0].numel()
    gradient = gradient_difference(x, xhat)
    return AutoencoderLosses(l1 + config.kl_weight * kl + config.gradient_weight * gradient, l1, kl, gradient)


def gradient_difference(x: Tensor, xhat: Tensor) -> Tensor:
    """Mean |difference of horizontal differences| plus the same of vertical ones, (N,); 0 for a constant
    offset."""
    error = x - xhat
    return _mean(error.diff(dim=-1).abs()) + _mean(error.diff(dim=-2).abs())


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
