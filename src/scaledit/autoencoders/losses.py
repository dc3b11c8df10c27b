"""The loss of an autoencoder; all means are over the 3 H W pixel values of an image.

    L = mean |x - xhat| + kl_weight KL / (3 H W) + gradient_weight mean(|d_x (x - xhat)| + |d_y (x - xhat)|)
        + perceptual_weight D(x, xhat)

    KL = 1/2 sum over latents of  mean^2 + exp(logvar) - 1 - logvar            (nats per image)
    D  = mean over maps f, and over their positions, of  |f(x) / |f(x)| - f(xhat) / |f(xhat)||^2

kl_weight is on the scale of latent diffusion's 1e-6 (Rombach et al. 2022, appendix G), whose sums run over
pixels and latents. The third term compares differences of neighboring pixels: if blur removes a texture, it
is as large as the texture was, and it costs a subtraction.

D is Zhang et al. 2018 (LPIPS, eq. 1) with all w_l = 1: no weights were fitted to what people perceive, and a
mean over maps replaces the sum. |.| is over channels, so D is from 0 to 4. The network of the maps is the
caller's: scaledit.evaluation.reconstruction has one whose weights come with a package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from scaledit.autoencoders.config import LossConfig
from scaledit.data.posterior import kl_divergence

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]
"""Images (N, 3, H, W) in [-1, 1] -> feature maps (N, C, h, w), of several sizes."""


class AutoencoderLosses(NamedTuple):
    """The weighted sum and the unweighted terms, each (N,). perceptual: None without feature maps."""

    total: Tensor
    l1: Tensor
    kl: Tensor
    gradient: Tensor
    perceptual: Tensor | None = None


def losses(
    config: LossConfig, x: Tensor, xhat: Tensor, moments: Tensor, maps: FeatureMaps | None = None
) -> AutoencoderLosses:
    """The losses of images `x` with reconstructions `xhat`, (N, 3, H, W), and raw moments (N, 2C, h, w).

    maps: of a frozen network, for the perceptual term; without them it is left out.
    """
    l1 = _mean((x - xhat).abs())
    kl = kl_divergence(moments) / x[0].numel()
    gradient = gradient_difference(x, xhat)
    total = l1 + config.kl_weight * kl + config.gradient_weight * gradient
    if maps is None:
        return AutoencoderLosses(total, l1, kl, gradient)
    perceptual = perceptual_distance(maps, x, xhat)
    return AutoencoderLosses(total + config.perceptual_weight * perceptual, l1, kl, gradient, perceptual)


def gradient_difference(x: Tensor, xhat: Tensor) -> Tensor:
    """mean |d_x (x - xhat)| + mean |d_y (x - xhat)|, (N,); 0 for a constant offset."""
    error = x - xhat
    return _mean(error.diff(dim=-1).abs()) + _mean(error.diff(dim=-2).abs())


def perceptual_distance(maps: FeatureMaps, x: Tensor, xhat: Tensor) -> Tensor:
    """D of the module's equation, (N,): 0 for equal images. The gradient flows to `xhat` only."""
    with torch.no_grad():
        targets = maps(x)
    pairs = zip(targets, maps(xhat), strict=True)
    distances = [(normalize(a) - normalize(b)).square().sum(1).mean((1, 2)) for a, b in pairs]
    return torch.stack(distances).mean(0)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
