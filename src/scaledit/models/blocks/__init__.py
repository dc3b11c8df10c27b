"""How a transformer block is told what it is asked for (paper, section 3.2, figure 3): one file a design.

    class AdaLN(Block, name="adaln"):
        def layers(self, config): return {"norm1": LayerNorm(...), "attn": SelfAttention(...), ...}
        def forward(self, m, x, told): return x + m.attn(...)            m: the module with those layers

    x <- enter(x);   x <- forward(block_i, x), i = 1..depth;   out <- final(leave(x))

`layers` builds a block and counts it, so that a design is described once. Its own class is the recipe's word
(`model.conditioning`), the table's entry and the figure's label; MODULE:CLASS names a design of one's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from scaledit.models.description import Kept, LayerNorm, Layers, Linear
from scaledit.part import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from scaledit.models.config import DiTConfig
else:
    from scaledit.lazy import torch

TIME_TOKENS = 1
"""Where a design treats the condition as tokens, the time is one of them."""


class Embedded(NamedTuple):
    """What a block is told. time: the embedded time, (N, D). pooled: the embedded condition as one vector,
    (N, D). sequence: the same as tokens (N, S, D), None where the vector is its only token. mask: (N, S),
    false at tokens that only fill up the batch, None where all count."""

    time: Tensor
    pooled: Tensor
    sequence: Tensor | None = None
    mask: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(N, 1 + S, D), the time first."""
        if self.sequence is None:
            return torch.stack((self.time, self.pooled), dim=1)
        return torch.cat([self.time.unsqueeze(1), self.sequence], dim=1)

    @property
    def token_mask(self) -> Tensor | None:
        """(N, 1 + S) of `tokens`."""
        if self.mask is None:
            return None
        return torch.cat([self.mask.new_ones(self.mask.shape[0], TIME_TOKENS), self.mask], dim=1)

    @property
    def vector(self) -> Tensor:
        """silu(t + c), (N, D): the input of every modulation."""
        return torch.nn.functional.silu(self.time + self.pooled)


def condition_tokens(config: DiTConfig) -> int:
    """How many `Embedded.tokens` are: the time and those of the conditioner."""
    return TIME_TOKENS + config.conditioner_part.tokens(config)


class Block(Part, kind="block", home="scaledit.models.blocks", needs=("layers", "forward")):
    """A block design: the layers of a block and of the last layer, and how they are used.

    TITLE: as figures spell it; the recipe's word where there is none.
    """

    TITLE: ClassVar[str] = ""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of one block, in the order in which they are built (and so draw their first weights).
        The names become those of the state dict, "blocks.0.NAME...."."""
        raise NotImplementedError

    def forward(self, m: Any, x: Tensor, told: Embedded) -> Tensor:
        """One block. m: its module, with the layers as attributes; x (N, T, D) -> (N, T, D)."""
        raise NotImplementedError

    def kept(self, config: DiTConfig) -> Kept:
        """What `forward` keeps for the backward pass beside its layers, of one image: factors of products
        that are its own. An estimate for `scaledit plan`."""
        return Kept()

    def final_layers(self, config: DiTConfig) -> Layers:
        """Of the last layer. Its linear starts at zero, so that an untrained model predicts zero."""
        return {"norm": LayerNorm(config.hidden_size, config.tokens), "linear": final_linear(config)}

    def final(self, m: Any, x: Tensor, told: Embedded) -> Tensor:
        """The last layer: x (N, T, D) -> (N, T, p p C), or twice as many with learned sigma."""
        return m.linear(m.norm(x))

    def final_kept(self, config: DiTConfig) -> Kept:
        """As `kept`, of the last layer."""
        return Kept()

    def enter(self, x: Tensor, told: Embedded) -> Tensor:
        """The patches' tokens before the first block: here a design may add tokens of its own."""
        return x

    def leave(self, x: Tensor, tokens: int) -> Tensor:
        """The patches' tokens, the first `tokens` of what the blocks have made of them."""
        return x


def final_linear(config: DiTConfig) -> Linear:
    """From tokens to patches."""
    outputs = config.out_channels * config.patch_size**2
    return Linear(config.hidden_size, outputs, config.tokens, zero=True)
