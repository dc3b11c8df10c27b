"""Kinds of autoencoders: what a string like "pixels", a folder or a hub id means. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.part import Part, field, members

if TYPE_CHECKING:
    from scaledit.autoencoders import Autoencoder, Precision


class AutoencoderKind(Part, kind="autoencoder", home="scaledit.autoencoders.kinds", needs=("open",)):
    """Opens an autoencoder. Where it lies is its own field, how it computes is the caller's."""

    def open(self, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False) -> Autoencoder:
        """Raises UsageError where there is none, or one that is not supported."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoAutoencoder(AutoencoderKind, name="pixels"):
    """None: the latents are the pixels."""

    def open(self, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False) -> Autoencoder:
        from scaledit.autoencoders.pixels import Pixels

        return Pixels()


@dataclass(frozen=True)
class KL(AutoencoderKind, name="kl"):
    """A KL autoencoder in diffusers' format (Rombach et al. 2022)."""

    path: str = field(doc="a folder (diffusers' own, or an autoencoder's run folder), or a hub id")

    def open(self, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False) -> Autoencoder:
        from scaledit.autoencoders.kl import KLAutoencoder

        return KLAutoencoder.open(self.path, device=device, precision=precision, tiled=tiled)


def named(where: str) -> AutoencoderKind:
    """What a recipe or a cache of latents means by `where`: the name of a kind that needs no path, or the
    path of a KL autoencoder. It imports nothing of a user's own: caches come from elsewhere too."""
    kind = members(AutoencoderKind).get(where)
    return KL(where) if kind is None or kind is KL else kind()
