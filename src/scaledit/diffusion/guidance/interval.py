"""Guidance in an interval of times (Kynkäänniemi et al. 2024).

    guided where low < u(t) <= high, unguided elsewhere      u: fraction of the schedule, 0 clean, 1 noise

The paper gives the interval as noise levels; here it is in the schedule's own time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.conditions import Condition
from scaledit.diffusion.guidance.base import ROUNDING, Guidance, Guided, guide_where
from scaledit.diffusion.schedule import Schedule
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class Interval(Guidance, name="interval"):
    """Limits the guidance before it in the list to the times low < t <= high, as fractions of the schedule: 0
    is the clean image, 1 is noise (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    Outside of the interval only the unguided prediction is evaluated, in each row of a batch on its own.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("low", "high")
    modifies: ClassVar[bool] = True

    low: float = field(0.0, ge=0, lt=1, doc="guided above this fraction of the schedule's time")
    high: float = field(0.9, gt=0, le=1, doc="and up to this one; 1 is pure noise")

    def check(self, where: str = "") -> None:
        super().check(where)
        if isinstance(self.low, int | float) and isinstance(self.high, int | float) and self.low >= self.high:
            raise UsageError(f"{where}low must be below high, got {self.low:g} and {self.high:g}")

    @property
    def idle(self) -> bool:
        bounds = self.low, self.high
        return all(isinstance(bound, int | float) for bound in bounds) and bounds == (0, 1)

    def contains(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Whether each of the times t (n,) is in the interval, (n,) bool on the CPU."""
        u = schedule.fraction(t) - ROUNDING
        return (self.low < u) & (u <= self.high)

    def spent(self, inside: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.where(self.contains(schedule, t), inside, 1)

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        t = t.expand(len(x_t))
        return guide_where(self.contains(self.schedule, t), self.denoiser, self.innermost, x_t, t, y)
