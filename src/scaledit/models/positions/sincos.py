"""The paper's frozen 2-D sin-cos table (section 3.2, "Patchify"; Vaswani et al. 2017).

pos[r, c] = [sin(c w), cos(c w), sin(r w), cos(r w)],   w_k = 10000^(-k / (D / 4)),  k = 0..D/4 - 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.errors import UsageError
from scaledit.models.positions import Position

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class SinCos(Position, name="sincos"):
    """Frozen sines and cosines of the column and the row."""

    def fits(self, config: DiTConfig) -> None:
        if config.hidden_size % 4:
            raise UsageError(
                f"model.hidden_size {config.hidden_size} is not divisible by 4, which the sin-cos position "
                f"table needs; use {max(4, round(config.hidden_size / 4) * 4)}"
            )

    def table(self, config: DiTConfig) -> Tensor:
        from scaledit.models.layers import position_table

        rows, columns = config.height // config.patch_size, config.width // config.patch_size
        return position_table(config.hidden_size, rows, columns)
