"""Parameters and multiply-adds of a DiT in closed form, from its config alone (no tensors, no torch).

    macs = depth (12 T d^2 + 2 T^2 d + 6 d^2) + ends                        (adaLN-Zero, MLP ratio 4)

one multiply-add counted as one, for one forward pass at batch 1, as the paper's Gflops are. Counted:
matrix products (linears and attention). Not counted: normalisations, activations, the label look-up.
"""

from __future__ import annotations

from typing import NamedTuple

from scaledit.models.config import CONDITION_TOKENS, TIME_FREQUENCIES, DiTConfig

TRAIN_FORWARDS = 3
"""A training step costs three forward passes: one forward, and a backward of two (paper, section 4)."""


class Counts(NamedTuple):
    """params: trainable parameters (the frozen position table left out). macs: multiply-adds of one
    forward pass at batch 1."""

    params: int
    macs: int


class _Tally:
    """Adds up layers as (parameters, multiply-adds)."""

    def __init__(self) -> None:
        self.params = 0
        self.macs = 0

    def times(self, count: int) -> Counts:
        return Counts(self.params * count, self.macs * count)

    def linear(self, rows: int, inputs: int, outputs: int) -> None:
        self.params += (inputs + 1) * outputs
        self.macs += rows * inputs * outputs

    def attention(self, queries: int, keys: int, width: int) -> None:
        self.macs += 2 * queries * keys * width

    def norm(self, width: int, *, affine: bool) -> None:
        self.params += 2 * width if affine else 0


def count(config: DiTConfig) -> Counts:
    """Trainable parameters and multiply-adds of `DiT(config)`."""
    d, tokens = config.hidden_size, config.tokens
    hidden = int(d * config.mlp_ratio)
    patch = config.patch_size**2
    plain = config.conditioning in ("in_context", "cross_attention")
    tally = _Tally()

    tally.linear(tokens, config.in_channels * patch, d)
    tally.linear(1, TIME_FREQUENCIES, d)
    tally.linear(1, d, d)
    tally.params += (config.num_classes + 1) * d

    length = tokens + (CONDITION_TOKENS if config.conditioning == "in_context" else 0)
    block = _Tally()
    block.norm(d, affine=plain)
    block.linear(length, d, 3 * d)
    block.attention(length, length, d)
    block.linear(length, d, d)
    block.norm(d, affine=plain)
    block.linear(length, d, hidden)
    block.linear(length, hidden, d)
    if config.conditioning == "cross_attention":
        block.norm(d, affine=True)
        block.linear(length, d, d)
        block.linear(CONDITION_TOKENS, d, 2 * d)
        block.attention(length, CONDITION_TOKENS, d)
        block.linear(length, d, d)
    elif config.conditioning in ("adaln", "adaln_zero"):
        block.linear(1, d, (6 if config.conditioning == "adaln_zero" else 4) * d)
    blocks = block.times(config.depth)

    tally.norm(d, affine=plain)
    if not plain:
        tally.linear(1, d, 2 * d)
    tally.linear(tokens, d, config.out_channels * patch)
    return Counts(tally.params + blocks.params, tally.macs + blocks.macs)


def sampling_bytes(config: DiTConfig, batch: int) -> int:
    """Bytes that a forward pass of `batch` images without gradients holds at once, at the least: of T tokens
    of width d, in float32, a block's input and its normalised copy, and the MLP's hidden layer before and
    after its activation. Weights are not counted."""
    hidden = int(config.hidden_size * config.mlp_ratio)
    return 4 * batch * config.tokens * (2 * config.hidden_size + 2 * hidden)


def train_macs(macs: int, images: int) -> int:
    """Multiply-adds of training on so many images at macs a forward pass: a backward pass is two forward ones
    (paper, section 4)."""
    return TRAIN_FORWARDS * macs * images
