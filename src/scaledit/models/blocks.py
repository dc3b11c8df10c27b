"""The paper's four ways to tell a transformer block the time t and the class c (section 3.2, figure 3).

    in_context       t and c join the sequence as two more tokens; the block is a plain ViT block
    cross_attention  x + Attn(LN x);  x + CrossAttn(LN x, [t, c]);  x + MLP(LN x)
    adaln            x + Attn((1 + s1) LN x + b1);  x + MLP((1 + s2) LN x + b2);   s, b = W silu(t + c)
    adaln_zero       the same with gates: x + g1 Attn(...);  x + g2 MLP(...);  W starts at zero

Only one reading reproduces the paper's parameter counts (449, 598, 600 and 675 M for XL/2): the first
two have affine LayerNorms and a plain last layer, the last two modulate the last layer as well.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaledit.models.layers import MLP, CrossAttention, SelfAttention, layer_norm, modulate


class Condition(NamedTuple):
    """What a block is told: the embedded time and the embedded label, each (N, D)."""

    time: Tensor
    label: Tensor

    @property
    def tokens(self) -> Tensor:
        """(N, 2, D), the time first."""
        return torch.stack(self, dim=1)

    @property
    def vector(self) -> Tensor:
        """silu(t + c), (N, D): the input of every modulation."""
        return F.silu(self.time + self.label)


class BlockFamily(Protocol):
    """One of the paper's designs: what happens before, in and after the stack of blocks."""

    def enter(self, x: Tensor, condition: Condition) -> Tensor: ...
    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module: ...
    def leave(self, x: Tensor) -> Tensor: ...
    def final(self, width: int, out: int) -> nn.Module: ...


class PlainBlock(nn.Module):
    """A ViT block with affine LayerNorms; it does not look at the condition (the tokens hold it)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = layer_norm(width, affine=True)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width, affine=True)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = layer_norm(width, affine=True)
        self.attn = SelfAttention(width, heads)
        self.norm_cross = layer_norm(width, affine=True)
        self.cross = CrossAttention(width, heads)
        self.norm2 = layer_norm(width, affine=True)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.cross(self.norm_cross(x), condition.tokens)
        return x + self.mlp(self.norm2(x))


class ModulatedBlock(nn.Module):
    """adaLN and, with gates, adaLN-Zero. Chunks of the modulation: shift, scale(, gate) for attention,
    then the same for the MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, gated: bool):
        super().__init__()
        self.gated = gated
        self.norm1 = layer_norm(width, affine=False)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width, affine=False)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(width, (6 if gated else 4) * width)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        chunks = self.modulation(condition.vector).chunk(6 if self.gated else 4, dim=1)
        if self.gated:
            shift1, scale1, gate1, shift2, scale2, gate2 = chunks
            x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
            return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))
        shift1, scale1, shift2, scale2 = chunks
        x = x + self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class PlainFinal(nn.Module):
    """Affine LayerNorm, Linear."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = layer_norm(width, affine=True)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        return self.linear(self.norm(x))


class ModulatedFinal(nn.Module):
    """LayerNorm modulated by the condition (shift, scale), Linear."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = layer_norm(width, affine=False)
        self.linear = nn.Linear(width, out)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        shift, scale = self.modulation(condition.vector).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))


class _Sequence:
    """Families that leave the sequence of tokens as it is."""

    def enter(self, x: Tensor, condition: Condition) -> Tensor:
        return x

    def leave(self, x: Tensor) -> Tensor:
        return x


class InContext:
    def enter(self, x: Tensor, condition: Condition) -> Tensor:
        return torch.cat([x, condition.tokens], dim=1)

    def leave(self, x: Tensor) -> Tensor:
        return x[:, :-2]

    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module:
        return PlainBlock(width, heads, mlp_ratio)

    def final(self, width: int, out: int) -> nn.Module:
        return PlainFinal(width, out)


class CrossAttending(_Sequence):
    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module:
        return CrossAttentionBlock(width, heads, mlp_ratio)

    def final(self, width: int, out: int) -> nn.Module:
        return PlainFinal(width, out)


class AdaLN(_Sequence):
    def __init__(self, *, gated: bool):
        self.gated = gated

    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module:
        return ModulatedBlock(width, heads, mlp_ratio, gated=self.gated)

    def final(self, width: int, out: int) -> nn.Module:
        return ModulatedFinal(width, out)


FAMILIES: dict[str, BlockFamily] = {
    "in_context": InContext(),
    "cross_attention": CrossAttending(),
    "adaln": AdaLN(gated=False),
    "adaln_zero": AdaLN(gated=True),
}
