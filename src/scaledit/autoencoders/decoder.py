"""Decodes latents by an autoencoder that is opened on first use.

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
    """where: a folder or a hub id. autoencoder_info: the autoencoder of the model's training latents."""

    where: str
    autoencoder_info: AutoencoderInfo
    device: str = "cpu"
    precision: Precision = "fp32"
    tiled: bool = False

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """Raises UsageError if the autoencoder is missing or decodes other latents."""
        if not self.where:
            raise UsageError(
                "this model generates latents, but its autoencoder is unknown; choose one with --decoder AE "
                "(for official DiT and SiT weights: stabilityai/sd-vae-ft-mse or -ema)"
            )
        try:
            opened = open_autoencoder(
                self.where, device=self.device, precision=self.precision, tiled=self.tiled
            )
        except UsageError as error:
            raise UsageError(
                f"{error}; it decodes the latents of this model; set its current path with "
                "autoencoder.path=AE in training, or --decoder AE afterwards"
            ) from None
        check_same_latents(opened, self.autoencoder_info)
        return opened

    @property
    def name(self) -> str:
        """The name in protocols: with a hash of the weights, without an absolute path of this machine."""
        sha256, where = self.autoencoder.sha256, Path(self.where)
        name = where.name if where.is_absolute() else self.where
        return f"{name}, {self.precision}{', tiled' if self.tiled else ''}, SHA-256 {sha256[:16]}"

    def __call__(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> (N, 3, H, W) float32 on the CPU."""
        return self.autoencoder.decode(z)


def autoencoder_info(autoencoder: Autoencoder) -> AutoencoderInfo:
    return AutoencoderInfo(*(getattr(autoencoder, name) for name in AutoencoderInfo._fields))


def check_same_latents(opened: Autoencoder, info: AutoencoderInfo) -> None:
    """Raises UsageError if an autoencoder does not fit the latents that `info` describes: their channels,
    their scale, and their encoder, which is unknown for converted weights. The decoder may differ, as in the
    paper's table 5."""
    for key in ("channels", "downsampling", "scale"):
        actual, expected = getattr(opened, key), getattr(info, key)
        if actual != expected:
            maker = info.name or "official ones"
            raise UsageError(
                f"{opened.name} has the {key} {actual}, but these latents have {expected} ({maker})"
            )
    if info.encoder_sha256 and opened.encoder_sha256 != info.encoder_sha256:
        raise UsageError(
            f"{opened.name} has a different encoder from {info.name}, which made these latents, so its "
            "decoder does not fit them"
        )
