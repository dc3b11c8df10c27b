"""Times of another distribution, shifted towards noise:

fraction = s f / (1 + (s - 1) f)                                       (Esser et al. 2024, eq. 23)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scaledit.diffusion import shift as shifts
from scaledit.diffusion.shift import AUTO, Shift
from scaledit.diffusion.timesteps.base import NOTHING, State, TimeDistribution, TimeSample
from scaledit.diffusion.timesteps.uniform import Uniform
from scaledit.lazy import Tensor
from scaledit.part import field


@dataclass(frozen=True)
class ShiftedTimes(TimeDistribution, name="shifted"):
    """The times of another distribution, shifted by the factor s. Sampling with `times = shifted` of the same
    s has its steps where training has its times."""

    shift: Shift = field(
        AUTO,
        gt=0,
        doc="s: noisier times above 1, cleaner ones below; auto: max(1, sqrt(C H W / 4096)) of the inputs",
    )
    times: TimeDistribution = field(Uniform(), doc="the distribution that is shifted")

    def check(self, where: str = "") -> None:
        super().check(where)
        shifts.check(self.shift, where)

    def chosen_for(self, shape: Sequence[int]) -> TimeDistribution:
        s = shifts.auto_shift(shape) if self.shift == AUTO else self.shift
        return replace(self, shift=s, times=self.times.chosen_for(shape))

    def begin(self) -> State:
        return self.times.begin()

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        fraction, weight = self.times.draw(u, state)
        return TimeSample(shifts.shifted(fraction, shifts.number(self.shift)), weight)

    def update(self, state: State, fraction: Tensor, losses: Tensor) -> None:
        self.times.update(state, shifts.unshifted(fraction, shifts.number(self.shift)), losses)
