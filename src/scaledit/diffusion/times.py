"""The times that a sampler visits, from the noisiest to the clean time: `times.grid(schedule, steps)`.

    Even        t_i = 1 - i / n                          beta schedules: ADM's respacing
    LogSNR      lambda_i evenly spaced, lambda = log(alpha / sigma)
    Karras      (sigma / alpha)_i^(1/rho) evenly spaced  (Karras et al. 2022, eq. 5)
    Shifted     t_i = s u / (1 + (s - 1) u)              (Esser et al. 2024, eq. 23), u evenly spaced
    Quadratic   t_i = u^2                                (Song et al. 2021, section D.2)
    Sine        t_i = sin^2(pi u / 2)
    Stride      every k-th time of a chain               (DDIM's code; ADM's "ddimN")
    Listed      an explicit list of times
    Auto        LogSNR on beta schedules, Even on flows

On a flow t lies in [0, 1]. A chain has the whole times 0..T-1, and -1 for the clean image; there the t above
is a fraction of the chain and is rounded to the whole time nearest to t T - 1. If two steps would round to
the same time, one of them takes the next free time, so every grid has exactly the requested number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scaledit.diffusion import shift as shifts
from scaledit.diffusion.parameterization import SIGMA_RANGE
from scaledit.diffusion.schedule import Schedule
from scaledit.diffusion.shift import AUTO, Shift
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import Part, build, field

LOG_SNR_CUT = (-5.1, 4.6)
"""Ends of grids in lambda = log(alpha / sigma) on schedules whose lambda is infinite, or nearly so, there:
about those of the paper's schedule, -5.06 at t = 999 and 4.61 at t = 0. Below -5.1 x_t holds less than 0.6 %
of the image, and above 4.6 the noise is about one step of 8 bits."""


@dataclass(frozen=True)
class Times(Part, kind="times", home="scaledit.diffusion.times", needs=("grid",)):
    """Which times a sampler visits."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        """(steps + 1,) float64 on the CPU: descending times, from the noisiest (except Stride and Listed) to
        the clean one. Raises UsageError if the schedule does not have that many steps."""
        raise NotImplementedError

    def chosen(self, schedule: Schedule) -> Times:
        """The times used on this schedule: itself, except for Auto."""
        return self

    def chosen_for(self, shape: Sequence[int]) -> Times:
        """The times for inputs (C, H, W): itself, unless they depend on their shape."""
        return self


def as_times(value: object) -> Times:
    """Times from a part, its name ("karras"), a table, or a list of times. Raises UsageError if invalid."""
    if isinstance(value, list | tuple):
        value = {"name": "list", "values": value}
    return build(Times, value, "times")


@dataclass(frozen=True)
class Auto(Times, name="auto"):
    """Even in log-SNR on beta schedules, and even in t on flows.

    The official grid of a chain ends with t = 0, and its last step in lambda is about four times as long as
    the previous one. A second-order multistep method extrapolates over it, and at 10 to 30 steps is then no
    better than DDIM.
    """

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return self.chosen(schedule).grid(schedule, steps)

    def chosen(self, schedule: Schedule) -> Times:
        return LogSNR() if schedule.discrete else Even()


@dataclass(frozen=True)
class Even(Times, name="even"):
    """Even in t; on beta schedules ADM's respaced times with both ends included, as in the paper."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        if not schedule.discrete:
            return _times(schedule, _even(schedule, steps))
        return _chain_grid(schedule, respaced(int(schedule.horizon), steps))


@dataclass(frozen=True)
class LogSNR(Times, name="log_snr"):
    """Even in lambda = log(alpha / sigma), which suits methods that are exact in lambda (DPM-Solver, UniPC).

    The points lie between the schedule's ends, or between `low` and `high` where an end is infinite or below
    `low`. The first is replaced by the noisiest time and the last by the clean time.
    """

    low: float = field(LOG_SNR_CUT[0], doc="lambda at the noisy end")
    high: float = field(LOG_SNR_CUT[1], doc="lambda at the clean end, on flows")

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
    """Even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5): most steps are spent at little noise.

    sigma / alpha goes from sigma_max to sigma_min, or between the ends of a chain if those are closer; then
    to the clean time. The first is replaced by the noisiest time.
    """

    rho: float = field(7.0, gt=0, doc="a larger rho spends more of the steps at little noise")
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
    """t = s u / (1 + (s - 1) u), u evenly spaced (Esser et al. 2024, eq. 23): more steps at high noise if
    s > 1, for large images, of which the same noise hides less."""

    shift: Shift = field(
        3.0,
        gt=0,
        doc="s: more steps at high noise above 1, at little noise below 1; auto: max(1, sqrt(C H W / 4096)) "
        "of the inputs, as in training",
    )

    def check(self, where: str = "") -> None:
        super().check(where)
        shifts.check(self.shift, where)

    def chosen_for(self, shape: Sequence[int]) -> Times:
        return replace(self, shift=shifts.auto_shift(shape)) if self.shift == AUTO else self

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return _times(schedule, shifts.shifted(_even(schedule, steps), shifts.number(self.shift)))


@dataclass(frozen=True)
class Quadratic(Times, name="quadratic"):
    """t = u^2, u evenly spaced: more steps at little noise (Song et al. 2021, section D.2)."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return _times(schedule, _even(schedule, steps) ** 2)


@dataclass(frozen=True)
class Sine(Times, name="sine"):
    """t = sin^2(pi u / 2), u evenly spaced: more steps near both ends."""

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        return _times(schedule, (_even(schedule, steps) * (math.pi / 2)).sin() ** 2)


@dataclass(frozen=True)
class Stride(Times, name="stride"):
    """Every k-th time of a beta schedule, from 0: the DDIM code's, ADM's `ddimN`, diffusers' "leading".

    The first time is not the noisiest one. Raises UsageError if no k gives exactly that many steps.
    """

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        if not schedule.discrete:
            raise UsageError("times = stride is for beta schedules, which have whole times; use even")
        return _chain_grid(schedule, ddim_stride(int(schedule.horizon), steps))


@dataclass(frozen=True)
class Listed(Times, name="list"):
    """An explicit list of times, in the schedule's unit, descending, without the clean time."""

    values: tuple[float, ...] = field(doc="descending times, one per step; the clean time is appended")

    def check(self, where: str = "") -> None:
        super().check(where)
        if not self.values or any(not a > b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise UsageError(
                f"{where}values must be a list of at least one time, in descending order; got "
                f"{list(self.values)}"
            )

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
                f"steps is {steps}, but values lists {len(self.values)} times; set steps={len(self.values)}"
            )
        return torch.tensor([*self.values, schedule.clean], dtype=torch.float64)


def _check_steps(schedule: Schedule, steps: int) -> None:
    """Raises UsageError if the schedule does not have that many steps."""
    if schedule.discrete and not 1 <= steps <= schedule.horizon:
        raise UsageError(
            f"steps must be from 1 to {int(schedule.horizon)}, the steps of the schedule, got {steps}"
        )
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")


def _even(schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) float64, evenly spaced from 1 to 0."""
    _check_steps(schedule, steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _times(schedule: Schedule, fractions: Tensor) -> Tensor:
    """The grid at these fractions of the time axis, (steps + 1,), from 1 to 0."""
    return _grid(schedule, (schedule.clean + schedule.horizon * fractions)[1:-1])


def _at_log_snr(schedule: Schedule, inner: Tensor) -> Tensor:
    """The grid whose inner times have these values of lambda, ascending, (steps - 1,)."""
    return _grid(schedule, schedule.at_log_snr(inner))


def _grid(schedule: Schedule, inner: Tensor) -> Tensor:
    """The grid of the noisiest time, these (steps - 1,) and the clean time; on a chain all are integers,
    and distinct."""
    times = [schedule.noisiest, *inner.tolist()]
    if not schedule.discrete:
        return torch.tensor([*times, schedule.clean], dtype=torch.float64)
    steps, total, distinct = len(times), int(schedule.horizon), []
    for i, time in enumerate(reversed(times)):
        lowest = distinct[-1] + 1 if distinct else 0
        distinct.append(min(max(round(time), lowest), total - steps + i))
    return _chain_grid(schedule, distinct)


def _chain_grid(schedule: Schedule, ascending: list[int]) -> Tensor:
    return torch.tensor([*reversed(ascending), schedule.clean], dtype=torch.float64)


def respaced(total: int, steps: int) -> list[int]:
    """ADM's respacing (Nichol & Dhariwal 2021): `steps` of the times 0..total-1 at a fractional stride,
    rounded half to even, including the first and the last; ascending. Raises UsageError if steps lies outside
    1..total."""
    if not 1 <= steps <= total:
        raise UsageError(f"steps must be from 1 to {total}, the steps of the schedule, got {steps}")
    if steps == 1:
        return [total - 1]  # a single step must start at the noisiest time (ADM's rule would give time 0)
    stride = (total - 1) / (steps - 1)
    times, position = [], 0.0
    for _ in range(steps):  # accumulated, not multiplied: the official rounding depends on it
        times.append(round(position))
        position += stride
    return times


def ddim_stride(total: int, steps: int) -> list[int]:
    """The integer stride of the DDIM paper, ADM's `ddimN`: exactly `steps` of 0..total-1, ascending. Raises
    UsageError if no stride gives that many."""
    for stride in range(1, total):
        times = range(0, total, stride)
        if len(times) == steps:
            return list(times)
    raise UsageError(f"no integer stride over {total} times gives exactly {steps} steps")
