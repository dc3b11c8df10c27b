"""Root mean square normalization (Zhang & Sennrich 2019, eq. 4): LayerNorm without the mean and the shift.

RMS x = x / sqrt(mean(x^2) + 1e-6),   times a scale per channel if it is affine
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.lazy import Lazy
from scaledit.models.description import Activations, Layer, Shapes
from scaledit.models.norms import Norm

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models import variants
else:
    variants = Lazy("scaledit.models.variants")


@dataclass(frozen=True)
class RMSNorm(Layer):
    """rows: tokens of an image. affine: whether it has a scale per channel."""

    width: int
    rows: int
    affine: bool = True

    def weights(self) -> Shapes:
        return {"weight": (self.width,)} if self.affine else {}

    def activations(self) -> Activations:
        """x and its root mean square; x / rms, if that is multiplied by a scale."""
        return Activations(wide=self.rows * (self.width * (2 if self.affine else 1) + 1))

    def live(self) -> int:
        return 2 * self.rows * self.width

    def build(self) -> nn.Module:
        return variants.RMSNorm(self.width, self.affine)


@dataclass(frozen=True)
class RMS(Norm, name="rms"):
    """RMSNorm, which neither subtracts the mean nor adds a shift (Zhang & Sennrich 2019)."""

    def layer(self, width: int, rows: int, affine: bool = True) -> RMSNorm:
        return RMSNorm(width, rows, affine)
