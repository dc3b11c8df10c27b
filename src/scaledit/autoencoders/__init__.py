"""Images <-> latents: the identity ("pixels"), or KL autoencoders in diffusers' format.

    moments = encode(images)      z = scale (mean + exp(logvar / 2) eps)      images = decode(z)

`open_autoencoder` opens an autoencoder; scaledit.training.autoencoder trains one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scaledit.autoencoders.kinds import named

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Autoencoder:
    """scale: the factor of the latents, 0.18215 in latent diffusion. channels: of the latents. downsampling:
    pixels per latent along one side. sha256: of the weights file. encoder_sha256: of the encoder's weights;
    equal for autoencoders whose decoders can be swapped."""

    name: str
    scale: float
    channels: int
    downsampling: int
    sha256: str
    encoder_sha256: str

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> raw posterior moments (N, 2C, h, w) float32: means, log variances."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> (N, 3, H, W) float32 in [-1, 1]."""
        raise NotImplementedError


def open_autoencoder(
    where: str, *, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False
) -> Autoencoder:
    """Opens "pixels", a folder (of diffusers, or the run folder of an autoencoder), or a hub id. tiled: see
    `KLAutoencoder`. Raises UsageError if there is no such autoencoder or it is not supported."""
    return named(where).open(device, precision, tiled)
