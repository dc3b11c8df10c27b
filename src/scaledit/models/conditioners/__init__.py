"""How the network embeds what it is asked for: one file a kind of condition (scaledit.conditions).

Condition (N rows)  ->  a vector (N, D), and as many tokens (N, S, D) as there are
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


class Asked(NamedTuple):
    """An embedded condition. pooled: one vector, (N, D). sequence: tokens (N, S, D), None where the vector is
    the only one. mask: (N, S), false at tokens that only fill up the batch, None where all count."""

    pooled: Tensor
    sequence: Tensor | None = None
    mask: Tensor | None = None


class Conditioner(
    Part,
    kind="conditioner",
    home="scaledit.models.conditioners",
    needs=("layers", "condition", "embed"),
):
    """What embeds a kind of condition."""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer}, submodules of the network."""
        raise NotImplementedError

    def tokens(self, config: DiTConfig) -> int:
        """S, how many tokens an embedded condition has (at most, where they are masked)."""
        return 1

    def condition(self, config: DiTConfig, asked: object, n: int, device: torch.device) -> Condition:
        """A batch of conditions. asked: a condition of this kind, what stands for one (a tensor of labels),
        or None for n rows of the null condition on that device. Raises UsageError for anything else."""
        raise NotImplementedError

    def embed(self, net: Any, condition: Any) -> Asked:
        """net: the network, with the layers as attributes. condition: what `condition` made."""
        raise NotImplementedError
