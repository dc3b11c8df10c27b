"""Cross-attention: the block attends to the time and the condition as tokens (paper, section 3.2).

    x + Attn(LN x);   x + CrossAttn(LN x, [t, c]);   x + MLP(LN x)

The norms are affine and the final layer is not modulated, which gives the paper's 598 M parameters of XL/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.models.blocks import (
    Block,
    Embedded,
    attention,
    condition_tokens,
    cross_attention,
    mlp,
    norm,
)
from scaledit.models.description import Layers

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class CrossAttention(Block, name="cross_attention", title="cross-attention"):
    """Each token attends to the time and the class, between self-attention and MLP."""

    def layers(self, config: DiTConfig) -> Layers:
        rows = config.sequence
        return {
            "norm1": norm(config, rows),
            "attn": attention(config, rows),
            "norm_cross": norm(config, rows),
            "cross": cross_attention(config, rows, condition_tokens(config)),
            "norm2": norm(config, rows),
            "mlp": mlp(config, rows),
        }

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        x = x + m.attn(m.norm1(x), embedded.places)
        x = x + m.cross(m.norm_cross(x), embedded.tokens, embedded.token_mask)
        return x + m.mlp(m.norm2(x))
