"""Uniform times:

fraction = u
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.timesteps.base import NOTHING, State, TimeDistribution, TimeSample
from scaledit.lazy import Tensor, torch


@dataclass(frozen=True)
class Uniform(TimeDistribution, name="uniform"):
    """All times are equally likely, as in the paper."""

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        return TimeSample(u, torch.ones_like(u))
