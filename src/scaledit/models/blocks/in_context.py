"""In-context: the time and the condition are appended to the sequence as tokens (paper, section 3.2).

    [x, t, c];   x + Attn(LN x);   x + MLP(LN x)               a plain ViT block (Dosovitskiy et al. 2021)

The norms are affine and the final layer is not modulated, which gives the paper's 449 M parameters of XL/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.lazy import Tensor, torch
from scaledit.models.blocks import Block, Embedded, condition_tokens
from scaledit.models.description import MLP, LayerNorm, Layers, SelfAttention

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class InContext(Block, name="in_context", title="in-context"):
    """The time and the class are tokens in the sequence of a plain ViT."""

    def layers(self, config: DiTConfig) -> Layers:
        d, rows = config.hidden_size, config.tokens + condition_tokens(config)
        return {
            "norm1": LayerNorm(d, rows),
            "attn": SelfAttention(d, config.num_heads, rows),
            "norm2": LayerNorm(d, rows),
            "mlp": MLP(d, config.mlp_hidden, rows),
        }

    def enter(self, x: Tensor, embedded: Embedded) -> Tensor:
        return torch.cat([x, embedded.tokens], dim=1)

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        mask = embedded.token_mask
        if mask is not None:  # no patch is padding
            mask = torch.cat([mask.new_ones(x.shape[0], x.shape[1] - mask.shape[1]), mask], dim=1)
        x = x + m.attn(m.norm1(x), embedded.places, mask)
        return x + m.mlp(m.norm2(x))

    def leave(self, x: Tensor, tokens: int) -> Tensor:
        return x[:, :tokens]
