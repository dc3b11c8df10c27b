"""adaLN-Zero: adaLN with a gate on each branch, all starting at zero (paper, section 3.2; Goyal et al. 2017).

    x + g1 Attn((1 + s1) LN x + b1);   x + g2 MLP((1 + s2) LN x + b2)

The vectors come in the order b1, s1, g1, b2, s2, g2. At the start each block is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from scaledit.models.blocks import Embedded
from scaledit.models.blocks.adaln import AdaLN, modulate
from scaledit.models.description import Kept

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class AdaLNZero(AdaLN, name="adaln_zero"):
    """The paper's own design: shift, scale and gate of both branches come from the time and the class."""

    TITLE: ClassVar[str] = "adaLN-Zero"
    VECTORS: ClassVar[int] = 6

    def forward(self, m: Any, x: Tensor, told: Embedded) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = m.modulation(told.vector).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * m.attn(modulate(m.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * m.mlp(modulate(m.norm2(x), shift2, scale2))

    def kept(self, config: DiTConfig) -> Kept:
        """As adaLN's, and the gates' factors: both branches, and all six vectors, of which the gates are
        views."""
        plain, d = super().kept(config), config.hidden_size
        return plain.plus(Kept(narrow=(2 * config.tokens + self.VECTORS) * d))
