"""SiT's weights (Ma et al. 2024): a DiT's keys and shapes with another meaning.

    SiT        x_s = s x_0 + (1 - s) eps,  s from 0 (noise) to 1,  output d x_s / ds = x_0 - eps,  time s
    scaledit   x_t = (1 - t) x_0 + t eps,  t = 1 - s,              output d x_t / dt = eps - x_0,  time 1000 t

So the last layer changes its sign, which is exact, and Velocity(tells="alpha") gives the network the time 1 -
t. SiT's second half of output channels is never used: it is removed here, and filled with zeros on the way
back.

Written from the paper and its authors' description of their program, then compared with outputs of that
program: one forward pass agrees within 9e-7 of the largest output, ten guided Euler steps within 2.1e-7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from scaledit.interop.lazy_tensors import Lazy
from scaledit.models.config import DiTConfig

LAST = ("final.linear.weight", "final.linear.bias")


def from_sit(weights: Mapping[str, Lazy], config: DiTConfig) -> tuple[dict[str, Lazy], DiTConfig]:
    """SiT's weights under scaledit's names -> those of scaledit's function, and its config."""
    channels = config.in_channels
    last = _with_last(weights, config, channels, lambda rows: -rows[:, :channels])
    return last, dataclasses.replace(config, learn_sigma=False)


def to_sit(weights: Mapping[str, Lazy], config: DiTConfig) -> tuple[dict[str, Lazy], DiTConfig]:
    """The inverse of `from_sit`, with zeros in the half that is never used."""
    channels = 2 * config.in_channels
    last = _with_last(
        weights, config, channels, lambda rows: torch.cat([-rows, torch.zeros_like(rows)], dim=1)
    )
    return last, dataclasses.replace(config, learn_sigma=True)


def _with_last(
    weights: Mapping[str, Lazy], config: DiTConfig, channels: int, change: Callable[[Tensor], Tensor]
) -> dict[str, Lazy]:
    """The weights with `change` applied to the last layer as (p p, C, ...). channels: C of the result."""
    out, area = dict(weights), config.patch_size**2
    for key in LAST:
        shape = area * channels, *weights[key].shape[1:]

        def changed(tensor: Tensor, shape: tuple[int, ...] = shape) -> Tensor:
            return change(tensor.reshape(area, -1, *shape[1:])).reshape(shape)

        out[key] = weights[key].mapped(shape, changed)
    return out
