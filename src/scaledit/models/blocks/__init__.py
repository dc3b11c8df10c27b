"""Block designs: how a transformer block is conditioned (paper, section 3.2, figure 3). One file per design.

    class AdaLN(Block, name="adaln"):
        def layers(self, config): return {"norm1": norm(config, ...), "attn": attention(config, ...), ...}
        def forward(self, m, x, embedded): return x + m.attn(m.norm1(x), embedded.places) ...

    x <- enter(x);   x <- forward(block_i, x), i = 1..depth;   out <- final(leave(x))

The network is both built and counted from `layers`. `norm`, `attention` and `mlp` make the layers that the
config names (model.norm, model.qk_norm, model.value_residual, model.mlp); a design that builds others itself
is refused with a config that changes them (`scaledit.models.switches`). In recipes a design is
`model.conditioning`: the name of a class here, or MODULE:CLASS for a user-defined one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.lazy import Tensor, torch
from scaledit.models.description import (
    Activations,
    CrossAttention,
    Layer,
    Layers,
    Linear,
    SelfAttention,
)
from scaledit.models.positions import Places
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig

TIME_TOKENS = 1
"""Tokens for the time in designs that embed the condition as tokens."""


class Embedded(NamedTuple):
    """The embedded time and condition. time: (N, D). pooled: the condition as one vector, (N, D). sequence:
    the condition as tokens (N, S, D); None if `pooled` is its only token. mask: (N, S), false at padding
    tokens; None if there are none. places: where the tokens are, for the attention of the blocks. shared:
    what the design computes once for all blocks (`Block.prepare`)."""

    time: Tensor
    pooled: Tensor
    sequence: Tensor | None = None
    mask: Tensor | None = None
    places: Places = Places()
    shared: Any = None

    @property
    def tokens(self) -> Tensor:
        """(N, 1 + S, D), starting with the time."""
        if self.sequence is None:
            return torch.stack((self.time, self.pooled), dim=1)
        return torch.cat([self.time.unsqueeze(1), self.sequence], dim=1)

    @property
    def token_mask(self) -> Tensor | None:
        """The mask of `tokens`, (N, 1 + S)."""
        if self.mask is None:
            return None
        return torch.cat([self.mask.new_ones(self.mask.shape[0], TIME_TOKENS), self.mask], dim=1)

    @property
    def vector(self) -> Tensor:
        """silu(t + c), (N, D): the input of every modulation."""
        return torch.nn.functional.silu(self.time + self.pooled)


def condition_tokens(config: DiTConfig) -> int:
    """The number of `Embedded.tokens`: the time and those of the conditioner."""
    return TIME_TOKENS + config.conditioner_part.tokens(config)


def norm(config: DiTConfig, rows: int, affine: bool = True) -> Layer:
    """The config's norm (model.norm) of `rows` tokens of one image. affine: whether it has learned weights;
    not if it is modulated."""
    return config.norm_part.layer(config.hidden_size, rows, affine)


def attention(config: DiTConfig, rows: int) -> SelfAttention:
    """Self-attention among `rows` tokens of one image, with the config's extras (model.qk_norm,
    model.value_residual). Call it as m.attn(x, embedded.places)."""
    return SelfAttention(config.hidden_size, config.num_heads, rows, config.qk_norm, config.value_residual)


def cross_attention(config: DiTConfig, rows: int, context: int) -> CrossAttention:
    """Attention from `rows` tokens of one image to `context` others, with model.qk_norm."""
    return CrossAttention(config.hidden_size, config.num_heads, rows, context, config.qk_norm)


def mlp(config: DiTConfig, rows: int, hidden: int | None = None) -> Layer:
    """The config's MLP (model.mlp) of `rows` tokens of one image. hidden: width of the hidden layer if it is
    the paper's MLP; by default that of model.mlp_ratio."""
    width = config.mlp_hidden if hidden is None else hidden
    return config.mlp_part.layer(config.hidden_size, width, rows)


class Block(Part, kind="block", home="scaledit.models.blocks", needs=("layers", "forward")):
    """A block design: the layers of a block and of the final layer, and their forward passes."""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of one block, in the order in which they are built and initialized. The state dict
        has them as "blocks.0.NAME....". A block has `config.sequence` tokens, and those that `enter`
        appends."""
        raise NotImplementedError

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        """One block: x (N, T, D) -> (N, T, D). m: its module, with the layers as attributes."""
        raise NotImplementedError

    def activations(self, config: DiTConfig) -> Activations:
        """Numbers that `forward` keeps for the backward pass besides its layers', per image; an estimate for
        `scaledit plan`."""
        return Activations()

    def shared_layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of what all blocks share, which become submodules of the network."""
        return {}

    def prepare(self, net: Any, embedded: Embedded) -> Embedded:
        """`embedded` with `shared`, computed once for all blocks. net: the network, with the layers of
        `shared_layers` as attributes."""
        return embedded

    def shared_activations(self, config: DiTConfig) -> Activations:
        """As `activations`, for `prepare`."""
        return Activations()

    def final_layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of the final layer. Its linear starts at zero, so an untrained model predicts
        zero."""
        return {"norm": norm(config, config.tokens), "linear": final_linear(config)}

    def final(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        """The final layer: x (N, T, D) -> (N, T, p p C), or twice as many channels with learned sigma."""
        return m.linear(m.norm(x))

    def final_activations(self, config: DiTConfig) -> Activations:
        """As `activations`, for the final layer."""
        return Activations()

    def enter(self, x: Tensor, embedded: Embedded) -> Tensor:
        """The tokens of the first block, given those of the patches and registers; a design may append its
        own."""
        return x

    def leave(self, x: Tensor, tokens: int) -> Tensor:
        """The tokens without those that `enter` appended. tokens: the number of the others, patches and
        registers."""
        return x


def final_linear(config: DiTConfig) -> Linear:
    """The linear layer from tokens to patches."""
    outputs = config.out_channels * config.patch_size**2
    return Linear(config.hidden_size, outputs, config.tokens, starts_at_zero=True)
