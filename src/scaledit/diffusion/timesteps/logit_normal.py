"""Logit-normal times:

fraction = sigmoid(mean + std Phi^-1(u))                               (Esser et al. 2024, section 3.1)
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.timesteps.base import NOTHING, State, TimeDistribution, TimeSample
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class LogitNormal(TimeDistribution, name="logit_normal"):
    """Logit-normal times, unweighted: the loss is meant to emphasize times in the middle.

    Published values of (mean, std), with t = 1 for noise: (0, 1) Stable Diffusion 3 and LightningDiT, (0.8,
    0.8) JiT in pixels, (-0.4, 1) MeanFlow.
    """

    mean: float = field(0.0, doc="mean of the logit; positive values favor noisier times")
    std: float = field(1.0, gt=0, doc="standard deviation of the logit")

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        # u = 0 would give -infinity; 2^-54 is half the spacing of the uniform numbers.
        z = torch.special.ndtri(u.clamp_min(2.0**-54))
        return TimeSample(torch.sigmoid(self.mean + self.std * z), torch.ones_like(u))
