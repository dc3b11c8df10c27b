"""Position encodings. One file per encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from scaledit.errors import UsageError, shown
from scaledit.models.description import Activations, Layers
from scaledit.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


class Places(NamedTuple):
    """What the attention of a block knows of where its tokens are, for T patches; tokens that a design
    appends have no place. rotation: (2, T, head / 2), cosines and sines of the angles by which the pairs of
    neighboring channels of queries and keys are rotated. bias: (heads, T, T), added to the scores. None if
    the encoding has none.

    With model.value_residual it also carries the values of the first block, (N, heads, T, head). kept: the
    list that the first block's attention appends them to. values: those values, in all other blocks."""

    rotation: Tensor | None = None
    bias: Tensor | None = None
    values: Tensor | None = None
    kept: list[Tensor] | None = None


class Position(Part, kind="position encoding", home="scaledit.models.positions"):
    """A position encoding: a table that is added to the tokens of the patches, or what attention adds to its
    scores or does to its queries and keys, or both. in_attention: whether attention needs `places`; a block
    that does not pass them on is then refused."""

    in_attention: ClassVar[bool] = False

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

    def spans(self, config: DiTConfig) -> tuple[int, int] | None:
        """The grid in which coordinates are measured; None if the encoding is the same function of row and
        column on every grid."""
        return None

    def places(self, net: Any, config: DiTConfig, grid: tuple[int, int], like: Tensor) -> Places:
        """What the attention of every block gets, for inputs with `grid` rows and columns of patches. net:
        the network, with the layers of `layers` as attributes. like: the patches' tokens, for device and
        dtype."""
        return Places()

    def activations(self, config: DiTConfig) -> Activations:
        """Numbers that the attention of one block keeps for the backward pass because of its places, per
        image; an estimate for `scaledit plan`."""
        return Activations()

    def check_trained_at(self, config: DiTConfig, grid: tuple[int, int]) -> None:
        """Raises UsageError if a model cannot be trained on inputs of this grid too (data.buckets)."""


Span = int | tuple[int, int]
"""The field of an encoding that says which grid its coordinates are measured in; 0 means the model's own."""


def spanned(span: Span, config: DiTConfig) -> tuple[int, int]:
    """The rows and columns that a span means."""
    if isinstance(span, tuple):
        return span
    return (span, span) if span else config.grid


def check_span(span: Span, where: str) -> None:
    """Raises UsageError for a span of no rows or columns."""
    if isinstance(span, tuple) and min(span) < 1:
        raise UsageError(f"{where}span must be at least 1 on both sides, got {shown(list(span))}")
