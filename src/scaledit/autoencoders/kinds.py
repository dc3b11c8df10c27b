"""Kinds of autoencoders, by name: "pixels", or a folder or hub id of a KL autoencoder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.part import Part, field, members

if TYPE_CHECKING:
    from scaledit.autoencoders import Autoencoder, Precision


class AutoencoderKind(Part, kind="autoencoder", home="scaledit.autoencoders.kinds", needs=("open",)):
    """Opens an autoencoder. Its location is a field; device and precision are the caller's choice."""

    def open(self, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False) -> Autoencoder:
        """Raises UsageError if the autoencoder is missing or not supported."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoAutoencoder(AutoencoderKind, name="pixels"):
    """No autoencoder: the latents are the pixels."""

    def open(self, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False) -> Autoencoder:
        from scaledit.autoencoders.pixels import Pixels

        return Pixels()


@dataclass(frozen=True)
class KL(AutoencoderKind, name="kl"):
    """A KL autoencoder in diffusers' format (Rombach et al. 2022)."""

    path: str = field(doc="a folder (of diffusers, or the run folder of an autoencoder), or a hub id")

    def open(self, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False) -> Autoencoder:
        from scaledit.autoencoders.kl import KLAutoencoder

        return KLAutoencoder.open(self.path, device=device, precision=precision, tiled=tiled)


def named(where: str) -> AutoencoderKind:
    """The autoencoder that a recipe or a cache calls `where`: the name of a kind without a path, or the path
    of a KL autoencoder. Never imports user modules, since caches may be of foreign origin."""
    kind = members(AutoencoderKind).get(where)
    return KL(where) if kind is None or kind is KL else kind()
