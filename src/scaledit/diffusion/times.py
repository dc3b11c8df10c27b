"""The times that a sampler visits, from the noisiest to the clean one: `times.grid(schedule, steps)`.

    Even        t_i = 1 - i / n                          chains of betas: ADM's respacing
    LogSNR      lambda_i even, lambda = log(alpha / sigma)
    Karras      (sigma / alpha)_i^(1/rho) even           (Karras et al. 2022, eq. 5)
    Shifted     t_i = s u / (1 + (s - 1) u),  u even     (Esser et al. 2024, eq. 23)
    Quadratic   t_i = u^2                                (Song et al. 2021, section D.2)
    Sine        t_i = sin^2(pi u / 2)
    Stride      every k-th time of a chain               (DDIM's code; ADM's "ddimN")
    Listed      the times that are given
    Auto        LogSNR on chains of betas, Even elsewhere

On a flow t lies in [0, 1]. A chain has the whole times 0..T-1, and -1 for the clean image; there the t above
is a fraction of the chain, and stands for the whole time nearest to t T - 1. Where two steps would round to
the same time, one of them takes the next time that is free. So every grid has exactly as many different times
as were asked for, and a sampler spends the evaluations that it states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.diffusion.parameterization import SIGMA_RANGE
from scaledit.diffusion.schedule import Schedule
from scaledit.errors import UsageError
from scaledit.part import Part, build, field

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch

LOG_SNR_CUT = (-5.1, 4.6)
"""Where grids in lambda = log(alpha / sigma) end on schedules whose lambda is infinite at an end, or nearly:
about the ends of the paper's own schedule, -5.06 at t = 999 and 4.61 at t = 0. Below -5.1 x_t is noise but
for 0.6 % of the image, and above 4.6 the noise is about one step of 8 bits."""


@dataclass(frozen=True)
class Times(Part, kind="times", home="scaledit.diffusion.times", needs=("grid",)):
    """Which times a sampler visits."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        """(steps + 1,) float64 on the CPU: descending times, the first the noisiest one (but for Stride and
        Listed), the last the clean one. Raises UsageError for a number of steps that the schedule does not
        have."""
        raise NotImplementedError

    def chosen(self, schedule: Schedule) -> Times:
        """Itself; for Auto what it stands for on this schedule."""
        return self


def as_times(value: object) -> Times:
    """Times from a part, its name ("karras"), a table, or a list of times. Raises UsageError."""
    if isinstance(value, list | tuple):
        value = {"name": "list", "values": value}
    return build(Times, value, "times")


@dataclass(frozen=True)
class Auto(Times, name="auto"):
    """Even in log-SNR on chains of betas, and even in t elsewhere.

    The official grid of a chain ends with t = 0: before it the step in lambda is some four times its
    predecessor, which a multistep method would extrapolate over, and at 10 to 30 steps that makes one of
    second order no better than DDIM.
    """

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return self.chosen(schedule).grid(schedule, steps)

    def chosen(self, schedule: Schedule) -> Times:
        return LogSNR() if schedule.discrete else Even()


@dataclass(frozen=True)
class Even(Times, name="even"):
    """Even in t: on chains of betas ADM's respaced times, both ends included (the paper's)."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        if not schedule.discrete:
            return _times(schedule, _even(schedule, steps))
        kept = respaced(int(schedule.horizon), steps)
        return torch.tensor([*reversed(kept), schedule.clean], dtype=torch.float64)


@dataclass(frozen=True)
class LogSNR(Times, name="log_snr"):
    """Even in lambda = log(alpha / sigma), which methods that are exact in lambda like (DPM-Solver, UniPC).

    The points lie between the schedule's own ends, or the cut-offs where an end is infinite or beyond `low`.
    The first of them is the noisiest time, whatever its lambda; in place of the last is the clean image.
    """

    low: float = field(LOG_SNR_CUT[0], doc="lambda where the points end towards noise")
    high: float = field(LOG_SNR_CUT[1], doc="lambda where they end towards the image, on flows")

    def check(self, where: str = "") -> None:
        super().check(where)
        if self.low >= self.high:
            raise UsageError(f"{where}low must be below high ({self.high:g}), got {self.low:g}")

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        _check_steps(schedule, steps)
        low, high = self.low, self.high
        if schedule.discrete:
            ends = schedule.log_snr(torch.tensor([schedule.noisiest, schedule.clean + 1]))
            low, high = max(float(ends[0]), low), float(ends[1])
        return _at_log_snr(schedule, torch.linspace(low, high, steps + 1, dtype=torch.float64)[1:-1])


@dataclass(frozen=True)
class Karras(Times, name="karras"):
    """Even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5): most steps where little noise is left.

    sigma / alpha goes from sigma_max to sigma_min, or to the ends of a chain where those lie inside; then to
    the clean image. In place of the first stands the noisiest time.
    """

    rho: float = field(7.0, gt=0, doc="larger: more of the steps where little noise is left")
    sigma_min: float = field(SIGMA_RANGE[0], gt=0, doc="the smallest sigma / alpha")
    sigma_max: float = field(SIGMA_RANGE[1], gt=0, doc="the largest sigma / alpha")

    def check(self, where: str = "") -> None:
        super().check(where)
        if self.sigma_min >= self.sigma_max:
            raise UsageError(
                f"{where}sigma_min must be below sigma_max ({self.sigma_max:g}), got {self.sigma_min:g}"
            )

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        _check_steps(schedule, steps)
        low, high = self.sigma_min, self.sigma_max
        if schedule.discrete:
            ends = (-schedule.log_snr(torch.tensor([schedule.clean + 1, schedule.noisiest]))).exp()
            low, high = max(low, float(ends[0])), min(high, float(ends[1]))
        roots = torch.linspace(high ** (1 / self.rho), low ** (1 / self.rho), steps, dtype=torch.float64)
        return _at_log_snr(schedule, -self.rho * roots[1:].log())


@dataclass(frozen=True)
class Shifted(Times, name="shifted"):
    """t = s u / (1 + (s - 1) u) of an even u: towards noise where s > 1 (Esser et al. 2024, eq. 23), as for
    large images, whose noise hides less of them at the same t."""

    shift: float = field(3.0, gt=0, doc="s: above 1 towards noise, below 1 towards the image")

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        u = _even(schedule, steps)
        return _times(schedule, self.shift * u / (1 + (self.shift - 1) * u))


@dataclass(frozen=True)
class Quadratic(Times, name="quadratic"):
    """t = u^2 of an even u: more steps towards the image (Song et al. 2021, section D.2)."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return _times(schedule, _even(schedule, steps) ** 2)


@dataclass(frozen=True)
class Sine(Times, name="sine"):
    """t = sin^2(pi u / 2) of an even u: more steps towards both ends."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return _times(schedule, (_even(schedule, steps) * (math.pi / 2)).sin() ** 2)


@dataclass(frozen=True)
class Stride(Times, name="stride"):
    """Every k-th time of a chain of betas from 0 on: the DDIM code's, ADM's `ddimN`, diffusers' "leading".

    Its first time is not the noisiest one. Raises UsageError where no k gives exactly so many steps.
    """

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        if not schedule.discrete:
            raise UsageError("times = stride is for chains of betas, which have whole times; use even")
        kept = ddim_stride(int(schedule.horizon), steps)
        return torch.tensor([*reversed(kept), schedule.clean], dtype=torch.float64)


@dataclass(frozen=True)
class Listed(Times, name="list"):
    """The times that are given, in the schedule's own unit, descending, without the clean one."""

    values: tuple[float, ...] = field(doc="times, descending, one for each step; the clean time follows them")

    def check(self, where: str = "") -> None:
        super().check(where)
        if not self.values or any(not a > b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise UsageError(f"{where}values must be descending times, at least one; got {list(self.values)}")

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        first, last = self.values[0], self.values[-1]
        whole = all(float(value).is_integer() for value in self.values)
        if not schedule.clean < last <= first <= schedule.noisiest or (schedule.discrete and not whole):
            kind = "whole times" if schedule.discrete else "times"
            raise UsageError(
                f"values must be {kind} above {schedule.clean:g}, at most {schedule.noisiest:g}; "
                f"got {list(self.values)}"
            )
        if steps != len(self.values):
            raise UsageError(
                f"steps is {steps}, and values lists {len(self.values)} times: say steps={len(self.values)}"
            )
        return torch.tensor([*self.values, schedule.clean], dtype=torch.float64)


def _check_steps(schedule: Schedule, steps: int) -> None:
    """Raises UsageError for a number of steps that the schedule does not have."""
    if schedule.discrete and not 1 <= steps <= schedule.horizon:
        raise UsageError(
            f"steps must lie in 1..{int(schedule.horizon)} (the schedule's own steps), got {steps}"
        )
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")


def _even(schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) float64, from 1 to 0."""
    _check_steps(schedule, steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _times(schedule: Schedule, fractions: Tensor) -> Tensor:
    """The grid at these fractions of the time axis, (steps + 1,), from 1 to 0."""
    at = schedule.clean + schedule.horizon * fractions
    at[0], at[-1] = schedule.noisiest, schedule.clean  # exactly, whatever the fractions' rounding
    return _distinct(schedule, at[:-1]) if schedule.discrete else at


def _at_log_snr(schedule: Schedule, inner: Tensor) -> Tensor:
    """The grid from the noisiest time over those with these values of lambda, ascending, to the clean one."""
    ends = [torch.tensor([end], dtype=torch.float64) for end in (schedule.noisiest, schedule.clean)]
    at = torch.cat([ends[0], schedule.at_log_snr(inner)])
    return _distinct(schedule, at) if schedule.discrete else torch.cat([at, ends[1]])


def _distinct(schedule: Schedule, at: Tensor) -> Tensor:
    """A chain's grid: whole times near `at` (steps,), descending, no two the same, and the clean time."""
    steps, total, kept = len(at), int(schedule.horizon), []
    for i, wanted in enumerate(reversed(at.round().long().tolist())):
        lowest = kept[-1] + 1 if kept else 0
        kept.append(min(max(wanted, lowest), total - steps + i))
    return torch.tensor([*reversed(kept), schedule.clean], dtype=torch.float64)


def respaced(total: int, steps: int) -> list[int]:
    """ADM's respacing (Nichol & Dhariwal 2021): `steps` of the times 0..total-1 at a fractional stride,
    rounded half to even, with the first and the last included; ascending. Raises UsageError for a number of
    steps beyond 1..total."""
    if not 1 <= steps <= total:
        raise UsageError(f"steps must lie in 1..{total} (the schedule's own steps), got {steps}")
    if steps == 1:
        return [total - 1]  # a lone step must start where the noise is (ADM's rule would give time 0)
    stride = (total - 1) / (steps - 1)
    kept, position = [], 0.0
    for _ in range(steps):  # accumulated, not multiplied: the official rounding depends on it
        kept.append(round(position))
        position += stride
    return kept


def ddim_stride(total: int, steps: int) -> list[int]:
    """The integer stride of the DDIM paper, ADM's `ddimN`: exactly `steps` of 0..total-1, ascending. Raises
    UsageError where no stride gives so many."""
    for stride in range(1, total):
        kept = list(range(0, total, stride))
        if len(kept) == steps:
            return kept
    raise UsageError(f"no integer stride over {total} times gives exactly {steps} steps")
