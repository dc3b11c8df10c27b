"""In-context: the time and the condition are appended to the sequence as tokens (paper, section 3.2).

    [x, t, c];   x + Attn(LN x);   x + MLP(LN x)               a plain ViT block (Dosovitskiy et al. 2021)

The norms are affine and the final layer is not modulated, which gives the paper's 449 M parameters of XL/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.lazy import Tensor, torch
from scaledit.models.blocks import Block, Embedded, attention, condition_tokens, mlp, norm
from scaledit.models.description import Layers

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


def plain_layers(config: DiTConfig, rows: int) -> Layers:
    """The layers of a plain ViT block of `rows` tokens."""
    return {
        "norm1": norm(config, rows),
        "attn": attention(config, rows),
        "norm2": norm(config, rows),
        "mlp": mlp(config, rows),
    }


def plain(m: Any, x: Tensor, embedded: Embedded, mask: Tensor | None = None) -> Tensor:
    """A plain ViT block. mask: (N, T), false at tokens to ignore; None if there are none."""
    x = x + m.attn(m.norm1(x), embedded.places, mask)
    return x + m.mlp(m.norm2(x))


@dataclass(frozen=True)
class InContext(Block, name="in_context", title="in-context"):
    """The time and the class are tokens in the sequence of a plain ViT."""

    def layers(self, config: DiTConfig) -> Layers:
        return plain_layers(config, config.sequence + condition_tokens(config))

    def enter(self, x: Tensor, embedded: Embedded) -> Tensor:
        return torch.cat([x, embedded.tokens], dim=1)

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        mask = embedded.token_mask
        if mask is not None:  # no patch and no register is padding
            mask = torch.cat([mask.new_ones(x.shape[0], x.shape[1] - mask.shape[1]), mask], dim=1)
        return plain(m, x, embedded, mask)

    def leave(self, x: Tensor, tokens: int) -> Tensor:
        return x[:, :tokens]
