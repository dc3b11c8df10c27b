"""The way back to pictures: an autoencoder that is opened when the first latents come.

z --decode--> x in [-1, 1],     by any autoencoder whose encoder is the one that made the latents
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from scaledit.autoencoders import Autoencoder, Precision, open_autoencoder
from scaledit.data.latents import AutoencoderInfo
from scaledit.errors import UsageError


@dataclass(frozen=True)
class Decoder:
    """where: a folder or a hub id. autoencoder_info: the autoencoder of the latents that the model was
    trained on."""

    where: str
    autoencoder_info: AutoencoderInfo
    device: str = "cpu"
    precision: Precision = "fp32"
    tiled: bool = False

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """Raises UsageError where it is not there, or decodes other latents."""
        if not self.where:
            raise UsageError(
                "this model makes latents, and nobody has said which autoencoder decodes them: say --decoder "
                "AE (official DiT and SiT weights go with stabilityai/sd-vae-ft-mse or -ema)"
            )
        try:
            opened = open_autoencoder(
                self.where, device=self.device, precision=self.precision, tiled=self.tiled
            )
        except UsageError as error:
            raise UsageError(
                f"{error}; it decodes what this model makes: say where it is now (autoencoder.path=AE in "
                "training, --decoder AE after)"
            ) from None
        check_same_latents(opened, self.autoencoder_info)
        return opened

    @property
    def name(self) -> str:
        """For protocols: with the hash of its weights, and without the way to it on this machine."""
        sha256, where = self.autoencoder.sha256, Path(self.where)
        said = where.name if where.is_absolute() else self.where
        return f"{said}, {self.precision}{', tiled' if self.tiled else ''}, SHA-256 {sha256[:16]}"

    def __call__(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> (N, 3, H, W) float32 on the CPU."""
        return self.autoencoder.decode(z)


def autoencoder_info(autoencoder: Autoencoder) -> AutoencoderInfo:
    return AutoencoderInfo(
        autoencoder.name,
        autoencoder.sha256,
        autoencoder.encoder_sha256,
        autoencoder.scale,
        autoencoder.channels,
        autoencoder.downsampling,
    )


def check_same_latents(opened: Autoencoder, info: AutoencoderInfo) -> None:
    """Raises UsageError where an autoencoder is not of the latents that `info` describes: shape, scale, and
    the encoder itself, where it is known (of converted weights it is not). (The decoder may be another: the
    paper's table 5.)"""
    maker = info.name or "official ones"
    for key in ("channels", "downsampling", "scale"):
        theirs, ours = getattr(opened, key), getattr(info, key)
        if theirs != ours:
            raise UsageError(f"{opened.name} has the {key} {theirs}; these latents have {ours} ({maker})")
    if info.encoder_sha256 and opened.encoder_sha256 != info.encoder_sha256:
        raise UsageError(
            f"{opened.name} has another encoder than {info.name}, which made these latents: its decoder "
            "would show something else"
        )
