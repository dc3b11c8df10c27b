"""The modules of parts that are not the paper's; the parts' own files have the sources.

RMSNorm     x / sqrt(mean(x^2) + eps)                               norms/rms.py
SwiGLU      (silu(x W1) * x W3) W2                                  mlps/swiglu.py
Bottleneck  (x A) W + b                                             patch_embeds/bottleneck.py
TimeTable   (1 - f) E[k] + f E[k + 1]                               time_embeddings/table.py
Learned     a tensor                                                registers, context tokens, adaLN-single
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from scaledit.models.description import LAYER_NORM_EPS


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps), times a scale per channel if it is affine; computed in float32, or in
    float64 for float64, and returned in x's dtype."""

    def __init__(self, width: int, affine: bool = True):
        super().__init__(width, eps=LAYER_NORM_EPS, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        weight = None if self.weight is None else self.weight.to(wide.dtype)
        if forward_ad._current_level >= 0:  # not every fused kernel has a forward-mode derivative
            out = wide * (wide.square().mean(-1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
            return (out if weight is None else out * weight).to(x.dtype)
        return F.rms_norm(wide, self.normalized_shape, weight, self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """(silu(x W1) * x W3) W2 with biases. W1 and W3 are the two halves of the rows of fc1; W2 is fc2."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Bottleneck(nn.Module):
    """Two linears without an activation function in between: x A^T W^T + b. The first has no bias, since W
    times it would be a part of b."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.reduce = nn.Linear(inputs, width, bias=False)
        self.expand = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.reduce(x))


class TimeTable(nn.Module):
    """t (N,) -> (N, D): the entry of a learned table, whose entries are evenly spaced from t = 0 to `last`,
    or the line between two entries. NaN for other times, since no entry stands for them."""

    def __init__(self, entries: int, width: int, last: float):
        super().__init__()
        self.last, self.per_unit = last, (entries - 1) / last
        self.weight = nn.Parameter(torch.randn(entries, width))

    def forward(self, t: Tensor) -> Tensor:
        t = t if t.dtype == torch.float64 else t.float()
        place = t * self.per_unit
        below = place.detach().nan_to_num().clamp(0, len(self.weight) - 2).floor()
        share = torch.where((t >= 0) & (t <= self.last), place - below, torch.nan)
        share = share.to(self.weight.dtype).unsqueeze(1)
        below = below.long()
        return (1 - share) * F.embedding(below, self.weight) + share * F.embedding(below + 1, self.weight)


class Learned(nn.Module):
    """A learned tensor of this shape, returned by a call."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        return self.weight
