"""adaLN: the norms' shift and scale are regressed from the condition (paper, section 3.2; Perez et al. 2018).

x + Attn((1 + s1) LN x + b1);   x + MLP((1 + s2) LN x + b2);    b1, s1, b2, s2 = W silu(t + c)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from scaledit.models.blocks import Block, Embedded, attention, final_linear, mlp, norm
from scaledit.models.description import Activations, Layers, Modulation

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (N, T, D); shift and scale (N, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


@dataclass(frozen=True)
class AdaLN(Block, name="adaln", title="adaLN"):
    """The time and the class give the shift and scale of both norms and of the final norm."""

    VECTORS: ClassVar[int] = 4
    """Vectors in the output of a block's modulation."""

    def layers(self, config: DiTConfig) -> Layers:
        rows = config.sequence
        return {
            "norm1": norm(config, rows, affine=False),
            "attn": attention(config, rows),
            "norm2": norm(config, rows, affine=False),
            "mlp": mlp(config, rows),
            "modulation": Modulation(config.hidden_size, self.VECTORS),
        }

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        shift1, scale1, shift2, scale2 = m.modulation(embedded.vector).chunk(4, dim=1)
        x = x + m.attn(modulate(m.norm1(x), shift1, scale1), embedded.places)
        return x + m.mlp(modulate(m.norm2(x), shift2, scale2))

    def activations(self, config: DiTConfig) -> Activations:
        """wide: LN x twice, t + c. narrow: silu(t + c), and 1 + s twice."""
        d = config.hidden_size
        return Activations(wide=(2 * config.sequence + 1) * d, narrow=3 * d)

    def final_layers(self, config: DiTConfig) -> Layers:
        return {
            "norm": norm(config, config.tokens, affine=False),
            "linear": final_linear(config),
            "modulation": Modulation(config.hidden_size, 2),
        }

    def final(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        shift, scale = m.modulation(embedded.vector).chunk(2, dim=1)
        return m.linear(modulate(m.norm(x), shift, scale))

    def final_activations(self, config: DiTConfig) -> Activations:
        """LN x, without the few vectors."""
        return Activations(wide=config.tokens * config.hidden_size)
