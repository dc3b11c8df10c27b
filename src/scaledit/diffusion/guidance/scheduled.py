"""Guidance whose scale depends on the time (Wang et al. 2024).

    plain + f(p) (guided - plain)          p = 1 - u: progress from noise (0) to the clean image (1)

    linear    f = p^power
    cosine    f = (1 - cos(pi p^power)) / 2

Around classifier-free guidance this is the scale 1 + f(p) (scale - 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from scaledit.conditions import Condition
from scaledit.diffusion.guidance.base import Guidance, Guided, extrapolated, guide_where
from scaledit.diffusion.schedule import Schedule
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class Scheduled(Guidance, name="scheduled"):
    """Multiplies the effect of the guidance before it in the list by a factor f of the time: the weight
    schedulers of Wang et al. 2024 (arXiv 2404.13040), and the power-cosine of MDT (Gao et al. 2023, arXiv
    2303.14389).

    Wang et al. divide f by its mean over time, which is 1/2 for power 1; here f reaches 1. Where f is 0, only
    the unguided prediction is evaluated.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("power", "floor")
    modifies: ClassVar[bool] = True
    reads_plain: ClassVar[bool] = True

    shape: Literal["constant", "linear", "cosine"] = field("linear", doc="the factor over time")
    toward: Literal["image", "noise"] = field("image", doc="the end at which the factor is 1")
    power: float = field(1.0, gt=0, doc="exponent of the time; above 1 the factor rises later")
    floor: float = field(0.0, ge=0, le=1, doc="the factor is at least this (clamped schedulers)")

    @property
    def idle(self) -> bool:
        return self.shape == "constant"

    def factor(self, schedule: Schedule, t: Tensor) -> Tensor:
        """f at each of the times t (n,): (n,) float64."""
        u = schedule.fraction(t)
        p = (1 - u if self.toward == "image" else u) ** self.power
        if self.shape == "constant":
            return torch.ones_like(p)
        f = p if self.shape == "linear" else (1 - torch.cos(math.pi * p)) / 2
        return torch.maximum(f, torch.as_tensor(self.floor, dtype=f.dtype))

    def spent(self, inside: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.where(self.factor(schedule, t) == 0, 1, inside)

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        t = t.expand(len(x_t))
        f = self.factor(self.schedule, t)
        prediction, plain = guide_where(f != 0, self.denoiser, self.innermost, x_t, t, y)
        return Guided(extrapolated(prediction, plain(), f), plain)
