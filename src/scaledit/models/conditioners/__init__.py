"""Conditioners embed conditions (scaledit.conditions). One file per kind of condition.

Condition (N rows)  ->  a vector (N, D), and optionally tokens (N, S, D)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.models.description import Layers
from scaledit.part import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from scaledit.conditions import Condition
    from scaledit.models.config import DiTConfig


class EmbeddedCondition(NamedTuple):
    """An embedded condition. pooled: one vector, (N, D). sequence: tokens (N, S, D); None if `pooled` is the
    only token. mask: (N, S), false at padding tokens; None if there are none."""

    pooled: Tensor
    sequence: Tensor | None = None
    mask: Tensor | None = None


class Conditioner(
    Part, kind="conditioner", home="scaledit.models.conditioners", needs=("layers", "condition", "embed")
):
    """Embeds one kind of condition."""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer}, which become submodules of the network."""
        raise NotImplementedError

    def tokens(self, config: DiTConfig) -> int:
        """S, the number of tokens of an embedded condition, padding included."""
        return 1

    def condition(self, config: DiTConfig, y: object, n: int, device: torch.device) -> Condition:
        """A batch of conditions. y: a condition of this kind, a tensor that it is made of (labels), or None
        for n rows of the null condition on `device`. Raises UsageError for anything else."""
        raise NotImplementedError

    def embed(self, net: Any, condition: Any) -> EmbeddedCondition:
        """Embeds what `condition` returned. net: the network, with the layers as attributes."""
        raise NotImplementedError
