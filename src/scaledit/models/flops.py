"""Parameters and multiply-adds of a DiT in closed form, from its config only. Imports no torch.

    macs = depth (12 T d^2 + 2 T^2 d + 6 d^2) + ends                        (adaLN-Zero, MLP ratio 4)

Sums over `description.Description`, the list of layers that the network is built from; see there for what is
counted.
"""

from __future__ import annotations

from typing import NamedTuple

from scaledit.models.config import DiTConfig
from scaledit.models.description import Description

TRAIN_FORWARDS = 3
"""A training step costs three forward passes: its own, and a backward pass of two (paper, section 4)."""
FLOAT32_BYTES = 4


class Counts(NamedTuple):
    """params: trainable parameters. macs: multiply-adds of one forward pass at batch 1."""

    params: int
    macs: int


def count(config: DiTConfig) -> Counts:
    """Trainable parameters and multiply-adds of `DiT(config)`."""
    described = Description.of(config)
    return Counts(described.params, described.macs)


def sampling_bytes(config: DiTConfig, batch: int) -> int:
    """Lower bound of the bytes that a forward pass of `batch` images without gradients holds at once, in
    float32 and without weights: a block's input, and the largest `Layer.live` of the block's layers."""
    largest = max((layer.live() for layer in Description.of(config).block.values()), default=0)
    return FLOAT32_BYTES * batch * (config.tokens * config.hidden_size + largest)


def train_macs(macs: int, images: int) -> int:
    """Multiply-adds of training on that many images. macs: of one forward pass."""
    return TRAIN_FORWARDS * macs * images
