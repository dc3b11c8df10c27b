"""A sampler of your own: the midpoint rule, for schedules with continuous times (the linear flow).

    scaledit sample runs/demo --sampler my_samplers:Midpoint --steps 12 --out midpoint.png

x_m = x_t + (step from t to m along x0(x_t), eps(x_t)),   m = (t + s) / 2
x_s = x_t + (step from t to s along x0(x_m), eps(x_m))
"""

from dataclasses import dataclass
from typing import ClassVar

from scaledit.diffusion.samplers.base import Sampler, along_flow
from scaledit.part import field


@dataclass(frozen=True)
class Midpoint(Sampler, name="midpoint"):
    """The midpoint rule: second order, two function evaluations per step (Runge 1895)."""

    evaluations: ClassVar[int] = 2

    steps: int = field(25, ge=1, doc="steps of the grid, two evaluations each")

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        middle = (t + s) / 2
        half = along_flow(denoiser.schedule, x, denoiser(x, t, condition), t, middle)
        return along_flow(denoiser.schedule, x, denoiser(half, middle, condition), t, s), None
