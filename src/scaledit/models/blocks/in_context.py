"""In-context: the time and the condition join the sequence as further tokens (paper, section 3.2).

    [x, t, c];   x + Attn(LN x);   x + MLP(LN x)               a plain ViT block (Dosovitskiy et al. 2021)

The norms are affine and the last layer is plain: only so the paper's 449 M parameters of XL/2 come out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from scaledit.models.blocks import Block, Embedded, condition_tokens
from scaledit.models.description import MLP, LayerNorm, Layers, SelfAttention

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from scaledit.models.config import DiTConfig
else:
    from scaledit.lazy import torch


@dataclass(frozen=True)
class InContext(Block, name="in_context"):
    """The blocks do not look at the condition; the tokens hold it."""

    TITLE: ClassVar[str] = "in-context"

    def layers(self, config: DiTConfig) -> Layers:
        d, rows = config.hidden_size, config.tokens + condition_tokens(config)
        return {
            "norm1": LayerNorm(d, rows),
            "attn": SelfAttention(d, config.num_heads, rows),
            "norm2": LayerNorm(d, rows),
            "mlp": MLP(d, config.mlp_hidden, rows),
        }

    def enter(self, x: Tensor, told: Embedded) -> Tensor:
        return torch.cat([x, told.tokens], dim=1)

    def forward(self, m: Any, x: Tensor, told: Embedded) -> Tensor:
        x = x + m.attn(m.norm1(x), self._mask(x, told))
        return x + m.mlp(m.norm2(x))

    def _mask(self, x: Tensor, told: Embedded) -> Tensor | None:
        """(N, T) of all tokens of x: the patches' all count."""
        mask = told.token_mask
        if mask is None:
            return None
        return torch.cat([mask.new_ones(x.shape[0], x.shape[1] - mask.shape[1]), mask], dim=1)

    def leave(self, x: Tensor, tokens: int) -> Tensor:
        return x[:, :tokens]
