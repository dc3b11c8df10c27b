"""Rotary position embeddings (Su et al. 2021, "RoFormer", eq. 14 to 16 and 34), on two axes.

<R(m) q, R(n) k> = <R(m - n) q, k>          scores depend on relative offsets only
R(r, c) turns channel pair k of a head by    r w_k,   k = 0..d/2 - 1,   in the first half of the pairs,
                                             c w_k                      in the second half
w_k = theta^(-2 k / d),   d = half of the head: the channels of one axis

On a grid with s times the rows (or columns) of the training grid, per axis:

    none          w_k                       integer coordinates, continued beyond those of the training
    interpolate   w_k / s                   coordinates scaled to span the training grid (Chen et al. 2023)
    ntk           w_k s^(-2 k / (d - 2))    theta' = theta s^(d / (d - 2)) (Peng et al. 2023, section 3.1):
                                            the highest frequency as in none, the lowest as in interpolate

All three are the same function on the training grid. Tokens that a design appends are not rotated. Nothing is
learned, and nothing is stored: the angles are computed in each forward pass, on the device of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.models.description import Activations
from scaledit.models.positions import Places, Position, check_span, spanned
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig

MOST_HEADS = 256
"""Numbers of heads that a message suggests."""


@dataclass(frozen=True)
class Rotary(Position, name="rotary"):
    """Rotations of queries and keys by the row and the column (Su et al. 2021), on any grid."""

    in_attention: ClassVar[bool] = True

    scaling: Literal["none", "interpolate", "ntk"] = field(
        "none",
        doc="how inputs of another size are encoded: none continues beyond the coordinates of the training; "
        "interpolate scales them to span those (Chen et al. 2023); ntk scales the base, which stretches low "
        "frequencies only (Peng et al. 2023)",
    )
    theta: float = field(10_000.0, gt=1, doc="the base of the frequencies")
    sincos: bool = field(False, doc="also add the frozen sin-cos table to the tokens, scaled alike")
    span: int | tuple[int, int] = field(
        0,
        ge=0,
        doc="tokens per side, or [rows, columns], of the grid that interpolate and ntk scale to, for a model "
        "trained further at another resolution; 0: those of its own grid",
    )

    def check(self, where: str = "") -> None:
        super().check(where)
        check_span(self.span, where)

    def fits(self, config: DiTConfig) -> None:
        head = config.hidden_size // config.num_heads
        if head % 4 == 0:
            return
        heads = [n for n in range(1, MOST_HEADS + 1) if config.hidden_size % (4 * n) == 0]
        fix = (
            f"use model.num_heads={min(heads, key=lambda n: abs(n - config.num_heads))}"
            if heads
            else f"use model.hidden_size={4 * config.num_heads * max(1, round(head / 4))}"
        )
        raise UsageError(
            f"rotary positions turn pairs of channels along two axes, so the width of a head must be "
            f"divisible by 4, but model.hidden_size {config.hidden_size} / model.num_heads "
            f"{config.num_heads} is {head}; {fix}"
        )

    def spans(self, config: DiTConfig) -> tuple[int, int] | None:
        return None if self.scaling == "none" else spanned(self.span, config)

    def table(self, config: DiTConfig) -> Tensor | None:
        return self.table_at(config, config.grid)

    def table_at(self, config: DiTConfig, grid: tuple[int, int]) -> Tensor | None:
        from scaledit.models.layers import position_table

        if not self.sincos:
            return None
        return position_table(config.hidden_size, *grid, self.spans(config))

    def frequencies(self, width: int, scale: float) -> list[float]:
        """w_0 .. w_(d/2 - 1) of one axis. width: d, its channels. scale: s, of the grid."""
        plain = [self.theta ** (-2 * k / width) for k in range(width // 2)]
        match self.scaling:
            case "interpolate":
                return [w / scale for w in plain]
            case "ntk":  # a single frequency is the highest one
                return [w * scale ** (-2 * k / max(1, width - 2)) for k, w in enumerate(plain)]
            case _:
                return plain

    def places(self, net: Any, config: DiTConfig, grid: tuple[int, int], like: Tensor) -> Places:
        width = config.hidden_size // config.num_heads // 2
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        angles: list[Tensor] = []
        for count, trained in zip(grid, spanned(self.span, config), strict=True):
            coordinates = torch.arange(count, dtype=dtype, device=like.device)
            frequencies = torch.tensor(
                self.frequencies(width, count / trained), dtype=dtype, device=like.device
            )
            angles.append(coordinates[:, None] * frequencies)
        rows, columns = angles
        both = torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], dim=-1)
        both = both.flatten(0, 1)
        return Places(rotation=torch.stack((both.cos(), both.sin())))

    def activations(self, config: DiTConfig) -> Activations:
        """The rotated q and k; v keeps the memory of all three."""
        return Activations(narrow=2 * config.tokens * config.hidden_size)
