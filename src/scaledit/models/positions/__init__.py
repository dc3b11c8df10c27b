"""Position encodings. One file per encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.errors import UsageError
from scaledit.models.description import Layers
from scaledit.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


class Places(NamedTuple):
    """What the attention of a block knows of where its tokens are. rotation: of queries and keys. bias: added
    to the scores. None if the encoding has none.

    With model.value_residual it also carries the values of the first block, (N, heads, T, head). kept: the
    list that the first block's attention appends them to. values: those values, in all other blocks."""

    rotation: Tensor | None = None
    bias: Tensor | None = None
    values: Tensor | None = None
    kept: list[Tensor] | None = None


class Position(Part, kind="position encoding", home="scaledit.models.positions"):
    """A position encoding: a table that is added to the tokens of the patches, or what attention adds to its
    scores or does to its queries and keys, or both."""

    def fits(self, config: DiTConfig) -> None:
        """Raises UsageError if the encoding does not fit the model."""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of learned weights, which become submodules of the network; empty if frozen."""
        return {}

    def table(self, config: DiTConfig) -> Tensor | None:
        """The encoding, (T, D) float32 on the CPU: a function of the config, not saved in checkpoints. None
        if nothing is added to the tokens."""
        return None

    def table_at(self, config: DiTConfig, grid: tuple[int, int]) -> Tensor | None:
        """`table` for inputs of another size. config: of the model, with the size of its training. grid: rows
        and columns of patches. Raises UsageError if the encoding is defined on one grid only."""
        raise UsageError(
            f"this model accepts inputs of {config.height}x{config.width} only, since its position encoding "
            f"{self.part_name()} is defined on {config.grid[0]}x{config.grid[1]} patches"
        )

    def places(self, net: Any, config: DiTConfig, grid: tuple[int, int], like: Tensor) -> Places:
        """What the attention of every block gets, for inputs with `grid` rows and columns of patches. net:
        the network, with the layers of `layers` as attributes. like: the patches' tokens, for device and
        dtype."""
        return Places()
