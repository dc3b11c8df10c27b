"""Layer normalization (Ba et al. 2016), the paper's.

LN x = (x - mean(x)) / sqrt(var(x) + 1e-6),   times a scale plus a shift per channel if it is affine
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.models.description import LayerNorm
from scaledit.models.norms import Norm


@dataclass(frozen=True)
class LayerNormalization(Norm, name="layer"):
    """LayerNorm, as in the paper (Ba et al. 2016)."""

    def layer(self, width: int, rows: int, affine: bool = True) -> LayerNorm:
        return LayerNorm(width, rows, affine)
