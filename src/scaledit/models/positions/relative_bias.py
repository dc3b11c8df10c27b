"""A learned bias on the scores for each relative offset (Shaw et al. 2018; Raffel et al. 2020, "T5", section
2.1; Liu et al. 2021, "Swin", eq. 4).

softmax(q k^T / sqrt(head) + B) v,     B[h, i, j] = b[h, r_i - r_j, c_i - c_j]

b is (heads, 2 R - 1, 2 C - 1) for a training grid of R x C tokens: all offsets of two tokens. It starts at
zero and is shared by all blocks, as in T5. Tokens that a design appends have no bias.

On another grid of R' x C' tokens:

    interpolate   b at the offset times R / R' (columns likewise), linearly between its entries
    clamp         b at the offset itself; offsets beyond the training's have the bias of the farthest one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.models.description import Activations, Layer, Layers, Shapes
from scaledit.models.positions import Places, Position, check_span, spanned
from scaledit.part import field

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models.config import DiTConfig

NAME = "position_bias"
"""The network's submodule that holds b."""


@dataclass(frozen=True)
class BiasTable(Layer):
    """b, for heads and a grid."""

    heads: int
    rows: int
    columns: int
    starts_at_zero = True

    def weights(self) -> Shapes:
        return {"weight": (self.heads, 2 * self.rows - 1, 2 * self.columns - 1)}

    def cast_params(self) -> int:
        return 0

    def build(self) -> nn.Module:
        from scaledit.models.layers import BiasTable

        return BiasTable(*self.weights()["weight"])


@dataclass(frozen=True)
class RelativeBias(Position, name="relative_bias", title="relative bias"):
    """A learned bias on the scores of attention for each relative offset (Raffel et al. 2020; Liu et al.
    2021)."""

    in_attention: ClassVar[bool] = True

    scaling: Literal["interpolate", "clamp"] = field(
        "interpolate",
        doc="how inputs of another size are encoded: interpolate scales their offsets to those of the "
        "training; clamp gives offsets beyond those the bias of the farthest one",
    )
    span: int | tuple[int, int] = field(
        0,
        ge=0,
        doc="tokens per side, or [rows, columns], of the grid that has a bias for each offset; 0: the "
        "model's own",
    )

    def check(self, where: str = "") -> None:
        super().check(where)
        check_span(self.span, where)

    def spans(self, config: DiTConfig) -> tuple[int, int]:
        return spanned(self.span, config)

    def layers(self, config: DiTConfig) -> Layers:
        return {NAME: BiasTable(config.num_heads, *spanned(self.span, config))}

    def table_at(self, config: DiTConfig, grid: tuple[int, int]) -> Tensor | None:
        return None

    def places(self, net: Any, config: DiTConfig, grid: tuple[int, int], like: Tensor) -> Places:
        known = spanned(self.span, config)
        bias: Tensor = getattr(net, NAME)()
        if grid != known:
            rows, columns = (self._weights(n, of).to(bias) for n, of in zip(grid, known, strict=True))
            bias = rows @ bias @ columns.T
        row, column = (_offsets(n, bias.device) for n in grid)
        # (heads, R, R, C, C) -> (heads, T, T)
        found = bias[:, row[:, :, None, None], column]
        patches = grid[0] * grid[1]
        return Places(bias=found.transpose(2, 3).reshape(-1, patches, patches))

    def _weights(self, count: int, known: int) -> Tensor:
        """(2 count - 1, 2 known - 1): each offset of one axis as a mixture of the known ones."""
        scale = known / count if self.scaling == "interpolate" else 1.0
        offsets = torch.arange(1 - count, count, dtype=torch.float64) * scale
        place = (offsets + known - 1).clamp(0, 2 * known - 2)
        return (1 - (place[:, None] - torch.arange(2 * known - 1)).abs()).clamp(min=0)

    def activations(self, config: DiTConfig) -> Activations:
        """Attention with a bias that is learned computes and keeps its scores."""
        return Activations(wide=config.num_heads * config.tokens**2)

    def check_trained_at(self, config: DiTConfig, grid: tuple[int, int]) -> None:
        known = spanned(self.span, config)
        if self.scaling == "clamp" and any(n > most for n, most in zip(grid, known, strict=True)):
            largest = [max(n, most) for n, most in zip(grid, known, strict=True)]
            raise UsageError(
                f"relative offsets on {grid[0]}x{grid[1]} patches exceed the learned bias, which has those "
                f"of {known[0]}x{known[1]} patches; set model.position.span={largest}"
            )


def _offsets(count: int, device: torch.device) -> Tensor:
    """(count, count): i - j, counted from 0."""
    place = torch.arange(count, device=device)
    return place[:, None] - place + count - 1
