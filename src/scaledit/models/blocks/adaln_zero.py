"""adaLN-Zero: adaLN with a gate on each branch, initialized to zero (paper, section 3.2; Goyal et al. 2017).

    x + g1 Attn((1 + s1) LN x + b1);   x + g2 MLP((1 + s2) LN x + b2)

The vectors are ordered b1, s1, g1, b2, s2, g2. An untrained block is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from scaledit.models.blocks import Embedded
from scaledit.models.blocks.adaln import AdaLN, modulate
from scaledit.models.description import Activations

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


def gated(m: Any, x: Tensor, embedded: Embedded, vectors: Tensor) -> Tensor:
    """The block, given its six vectors, (N, 6 D)."""
    shift1, scale1, gate1, shift2, scale2, gate2 = vectors.chunk(6, dim=1)
    x = x + gate1.unsqueeze(1) * m.attn(modulate(m.norm1(x), shift1, scale1), embedded.places)
    return x + gate2.unsqueeze(1) * m.mlp(modulate(m.norm2(x), shift2, scale2))


@dataclass(frozen=True)
class AdaLNZero(AdaLN, name="adaln_zero", title="adaLN-Zero"):
    """The paper's final design: the time and the class give the shift, scale and gate of both branches."""

    VECTORS: ClassVar[int] = 6

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        return gated(m, x, embedded, m.modulation(embedded.vector))

    def activations(self, config: DiTConfig) -> Activations:
        """adaLN's, and the factors of the gates: both branches, and all six vectors, since gates are
        views."""
        gates = (2 * config.sequence + self.VECTORS) * config.hidden_size
        return super().activations(config).plus(Activations(narrow=gates))
