"""The identity as an autoencoder: the latents are the pixels.

moments = (images, log 0)        decode(z) = clamp(z, -1, 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaledit.autoencoders import Autoencoder
from scaledit.data.posterior import LOG_VARIANCE_RANGE
from scaledit.errors import UsageError


@dataclass(frozen=True)
class Pixels(Autoencoder):
    """The identity on (N, 3, H, W). Its log variance is the minimum, -30: a standard deviation of 3e-7."""

    name: str = "pixels"
    scale: float = 1.0
    channels: int = 3
    downsampling: int = 1
    sha256: str = ""
    encoder_sha256: str = ""

    def encode(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UsageError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
        images = images.float()
        return torch.cat([images, torch.full_like(images, LOG_VARIANCE_RANGE[0])], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return z.float().clamp(-1, 1)
