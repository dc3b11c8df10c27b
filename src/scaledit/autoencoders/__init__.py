"""Images <-> latents: nothing (pixels), or KL autoencoders in diffusers' format.

    moments = encode(images)      z = scale (mean + exp(logvar / 2) eps)      images = decode(z)

An autoencoder is opened by `open_autoencoder`; training one's own is scaledit.training.autoencoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from scaledit.autoencoders.kinds import named

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]


class Autoencoder(Protocol):
    """What a latent cache and a pipeline need to know. `scale` is the one owner of 0.18215."""

    @property
    def name(self) -> str: ...

    @property
    def scale(self) -> float: ...

    @property
    def channels(self) -> int:
        """C of the latents."""
        ...

    @property
    def downsampling(self) -> int:
        """Pixels a latent, along one side."""
        ...

    @property
    def sha256(self) -> str:
        """Of the weights file."""
        ...

    @property
    def encoder_sha256(self) -> str:
        """Of what makes the latents: equal for autoencoders whose decoders can be swapped."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> raw posterior moments (N, 2C, h, w) float32: means, log variances."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> (N, 3, H, W) float32 in [-1, 1]."""
        ...


def open_autoencoder(
    where: str, *, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False
) -> Autoencoder:
    """ "pixels", a folder (diffusers' own, or an autoencoder's run folder), or a hub id.

    Raises UsageError in one sentence where there is none, or one that is not supported.
    """
    return named(where).open(device, precision, tiled)
