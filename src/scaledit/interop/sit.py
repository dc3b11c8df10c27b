"""SiT's weights (Ma et al. 2024): a DiT's keys and shapes, read as another function.

    SiT     x_s = s x_0 + (1 - s) eps,  s from 0 (noise) to 1,   out = d x_s / ds = x_0 - eps,  told s
    ours    x_t = (1 - t) x_0 + t eps,  t = 1 - s,               out = d x_t / dt = eps - x_0,  told 1000 t

So the last layer changes its sign, which is exact, and Velocity(tells="alpha") tells the network 1 - t.
SiT's second half of output channels is never used: it is left out, and is zero on the way back.

Written from the paper and what its authors say of their program; then held against outputs of that program:
one forward pass within 9e-7 of the largest output, ten guided Euler steps within 2.1e-7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from scaledit.interop.lazy_tensors import Lazy
from scaledit.models.config import DiTConfig

LAST = ("final.linear.weight", "final.linear.bias")


def from_sit(weights: Mapping[str, Lazy], config: DiTConfig) -> tuple[dict[str, Lazy], DiTConfig]:
    """Weights in our names that were SiT's -> those of our function, and its config."""
    area, channels = config.patch_size**2, config.in_channels
    out = dict(weights)
    for key in LAST:
        rest = weights[key].shape[1:]

        def change(tensor: Tensor, rest: tuple[int, ...] = rest) -> Tensor:
            return -tensor.reshape(area, -1, *rest)[:, :channels].reshape(area * channels, *rest)

        out[key] = weights[key].mapped((area * channels, *rest), change)
    return out, dataclasses.replace(config, learn_sigma=False)


def to_sit(weights: Mapping[str, Lazy], config: DiTConfig) -> tuple[dict[str, Lazy], DiTConfig]:
    """The inverse, with zeros in the half that is never used."""
    area, channels = config.patch_size**2, config.in_channels
    out = dict(weights)
    for key in LAST:
        rest = weights[key].shape[1:]

        def change(tensor: Tensor, rest: tuple[int, ...] = rest) -> Tensor:
            used = -tensor.reshape(area, channels, *rest)
            return torch.cat([used, torch.zeros_like(used)], dim=1).reshape(2 * area * channels, *rest)

        out[key] = weights[key].mapped((2 * area * channels, *rest), change)
    return out, dataclasses.replace(config, learn_sigma=True)
