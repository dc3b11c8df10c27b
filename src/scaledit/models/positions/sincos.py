"""The paper's frozen 2-D sin-cos table (section 3.2, "Patchify"; Vaswani et al. 2017).

pos[r, c] = [sin(c w), cos(c w), sin(r w), cos(r w)],   w_k = 10000^(-k / (D / 4)),  k = 0..D/4 - 1

At another resolution the same function is evaluated at scaled coordinates: the token (r, c) of an R x C grid
has the coordinates (r S / R, c S / C), where S is the number of tokens per side in the original training. A
model that was trained on 16 x 16 tokens and continues with 32 x 32 has its old positions at even r and c, and
new ones halfway between them. Sampling at another size without further training does the same, or, with
scaling "none", keeps the distance of neighbors and continues beyond the coordinates of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scaledit.errors import UsageError
from scaledit.models.positions import Position, check_span, spanned
from scaledit.part import field

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class SinCos(Position, name="sincos"):
    """Frozen sines and cosines of the column and the row."""

    span: int | tuple[int, int] = field(
        0,
        ge=0,
        doc="tokens per side, or [rows, columns], that the coordinates span, for a model trained further at "
        "another resolution; 0: those of its own grid",
    )
    scaling: Literal["interpolate", "none"] = field(
        "interpolate",
        doc="how inputs of another size are encoded: interpolate scales their coordinates to span those of "
        "the training; none continues beyond them",
        added=True,
    )

    def check(self, where: str = "") -> None:
        super().check(where)
        check_span(self.span, where)

    def fits(self, config: DiTConfig) -> None:
        if config.hidden_size % 4:
            raise UsageError(
                f"model.hidden_size {config.hidden_size} is not divisible by 4, which the sin-cos position "
                f"table needs; use {max(4, round(config.hidden_size / 4) * 4)}"
            )

    def spans(self, config: DiTConfig) -> tuple[int, int]:
        return spanned(self.span, config)

    def table(self, config: DiTConfig) -> Tensor:
        from scaledit.models.layers import position_table

        return position_table(config.hidden_size, *config.grid, spanned(self.span, config))

    def table_at(self, config: DiTConfig, grid: tuple[int, int]) -> Tensor:
        from scaledit.models.layers import position_table

        rows, columns = spanned(self.span, config)
        if self.scaling == "none":
            rows, columns = rows * grid[0] / config.grid[0], columns * grid[1] / config.grid[1]
        return position_table(config.hidden_size, *grid, (rows, columns))
