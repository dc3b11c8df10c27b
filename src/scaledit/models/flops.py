"""Parameters and multiply-adds of a DiT in closed form, from its config alone (no tensors, no torch).

    macs = depth (12 T d^2 + 2 T^2 d + 6 d^2) + ends                        (adaLN-Zero, MLP ratio 4)

one multiply-add counted as one, for one forward pass at batch 1, as the paper's Gflops are. Counted:
matrix products (linears and attention). Not counted: normalisations, activations, the label look-up.
The sums are over `description.Description`, the list of layers that the network is built from.
"""

from __future__ import annotations

from typing import NamedTuple

from scaledit.models.config import DiTConfig
from scaledit.models.description import Description

TRAIN_FORWARDS = 3
"""A training step costs three forward passes: one forward, and a backward of two (paper, section 4)."""
BYTES = 4  # of a number in float32


class Counts(NamedTuple):
    """params: trainable parameters (the frozen position table left out). macs: multiply-adds of one
    forward pass at batch 1."""

    params: int
    macs: int


def count(config: DiTConfig) -> Counts:
    """Trainable parameters and multiply-adds of `DiT(config)`."""
    described = Description.of(config)
    return Counts(described.params, described.macs)


def sampling_bytes(config: DiTConfig, batch: int) -> int:
    """Bytes that a forward pass of `batch` images without gradients holds at once, at the least: of T tokens
    of width d, in float32, a block's input, and what the largest of its layers makes of its own input (the
    MLP: that, and the hidden layer before and after its activation). Weights are not counted."""
    layers = Description.of(config).block.values()
    largest = max((layer.live() for layer in layers), default=0)
    return BYTES * batch * (config.tokens * config.hidden_size + largest)


def train_macs(macs: int, images: int) -> int:
    """Multiply-adds of training on so many images at macs a forward pass: a backward pass is two forward ones
    (paper, section 4)."""
    return TRAIN_FORWARDS * macs * images
