"""The sampling loop: all rows of a batch make a step together, each between its own times.

    x_s = step(denoiser, x_t, t, s, ...)         t, s, i: one per row

`sample` runs one job, whose rows agree. `sample_many` runs jobs with different numbers of steps, seeds,
guidance scales and conditions together, and a `Batch` accepts new jobs while others are running.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scaledit import conditions
from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.guidance import Guidance, guided, merge
from scaledit.diffusion.samplers.base import NoiseSource, Sampler
from scaledit.diffusion.schedule import Schedule
from scaledit.errors import RunError
from scaledit.lazy import Tensor, torch
from scaledit.part import Part
from scaledit.values import own_fields


class NonFiniteError(RunError):
    """Samples became NaN or infinite. rows: the job's rows that were first. step: the sampling step that made
    them so, from 0, or -1 if the initial noise was not finite. t, s: its times. job: the job's number."""

    def __init__(self, rows: list[int], step: int, steps: int, t: float, s: float, job: int = 0):
        self.rows, self.step, self.steps, self.t, self.s, self.job = rows, step, steps, t, s, job
        super().__init__(self.describe("row" if len(rows) == 1 else "rows", rows))

    def describe(self, noun: str, numbers: Sequence[int]) -> str:
        """The message, with the rows called `noun` and numbered by `numbers`."""
        listed = ", ".join(map(str, numbers[:MOST_LISTED]))
        more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
        if self.step < 0:
            return f"the noise that sampling starts from is not finite in {noun} {listed}{more}"
        return (
            f"sampling gave numbers that are not finite: first in step {self.step + 1} of {self.steps}, from "
            f"time {self.t:g} to {self.s:g}, in {noun} {listed}{more}"
        )


MOST_LISTED = 8
"""Rows that a message lists, at most."""


class _FiniteCheck:
    """Records the step at which each row of a job first was not finite, on the images' device: a GPU is
    synchronized once, after the last step, and a CPU, which needs no synchronization, in every step."""

    def __init__(self, x: Tensor, grid: Tensor, job: int):
        self.grid, self.job = grid, job
        self.first = torch.full((len(x),), len(grid), device=x.device)
        self.record(x, -1)

    def record(self, x: Tensor, step: int) -> None:
        bad = ~torch.isfinite(x).flatten(1).all(1)
        self.first = torch.where(bad, self.first.clamp(max=step), self.first)
        if x.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises NonFiniteError."""
        steps, first = len(self.grid) - 1, self.first.tolist()
        if first and (step := min(first)) <= steps:
            rows = [row for row, row_step in enumerate(first) if row_step == step]
            t, s = float(self.grid[step]), float(self.grid[step + 1])
            raise NonFiniteError(rows, step, steps, t, s, self.job)


@dataclass(frozen=True)
class Job:
    """Images to sample together. noise: of N rows. y: labels (N,) int64, a Condition of N rows, or None for
    the null condition. guidance: parts around the denoiser, the first innermost."""

    sampler: Sampler
    noise: NoiseSource
    y: Tensor | Condition | None = None
    guidance: Sequence[Guidance] = ()


class _Running:
    """A job in progress: its rows x, its sampler's state, and its next step i."""

    def __init__(self, job: Job, schedule: Schedule, number: int):
        self.job, self.number, self.i = job, number, 0
        self.x = job.noise.initial()
        self.grid = job.sampler.chosen_for(self.x.shape[1:]).grid(schedule)
        self.finite = _FiniteCheck(self.x, self.grid, number)
        self.state = job.sampler.init(self.x)

    def time(self, i: int) -> Tensor:
        """The i-th time of the grid, for each row, (N,)."""
        return self.grid[i].expand(len(self.x))

    def noise(self, needed: Tensor | None) -> Tensor:
        """The noise of this step; zeros, without drawing, if no row needs it."""
        if needed is None or bool(needed.any()):
            return self.job.noise.step(self.i)
        return torch.zeros_like(self.x)


class Batch:
    """Jobs whose rows go through the denoiser together. Their samplers may differ only in steps and times,
    and their guidance only in BY_ROW fields.

    Each job's images are those of the job alone, up to the network's rounding at another batch size.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.running: list[_Running] = []
        self._guided: tuple[Denoiser, Tensor | Condition | None] | None = None

    def add(self, job: Job, number: int = 0) -> None:
        """Starts a job, whatever step the others are at. number: identifies it in `advance`.

        Raises UsageError if the schedule does not have the sampler's number of steps, ValueError if the job
        cannot be batched with the running ones, NonFiniteError if its noise is not finite.
        """
        with torch.no_grad():
            self._add(_Running(job, self.denoiser.schedule, number))

    def _add(self, job: _Running) -> None:
        if self.running and kind(job) != kind(self.running[0]):
            raise ValueError(
                "this job has a different sampler, guidance or image shape from the others, so it cannot be "
                "batched with them"
            )
        self.running.append(job)
        self._guided = None

    def advance(self, on_step: Callable[[int, int, Tensor], None] | None = None) -> list[tuple[int, Tensor]]:
        """Makes one step of every row and returns (number, images (N, C, H, W)) of the jobs that finished.

        on_step(number, i, x) is called for each job after its step i. Raises NonFiniteError.
        """
        with torch.no_grad():
            self._step()
        done, running = [], []
        for job in self.running:
            job.finite.record(job.x, job.i)
            if on_step is not None:
                on_step(job.number, job.i, job.x)
            job.i += 1
            if job.i < len(job.grid) - 1:
                running.append(job)
                continue
            job.finite.check()
            done.append((job.number, job.x))
        if done:
            self.running, self._guided = running, None
        return done

    def _step(self) -> None:
        jobs = self.running
        sizes = [len(job.x) for job in jobs]
        if self._guided is None:
            parts = merge([tuple(job.job.guidance) for job in jobs], sizes)
            self._guided = guided(self.denoiser, parts), _cat([job.job.y for job in jobs])
        denoiser, y = self._guided

        def noise(needed: Tensor | None = None) -> Tensor:
            masks = [None] * len(jobs) if needed is None else needed.split(sizes)
            return _cat([job.noise(mask) for job, mask in zip(jobs, masks, strict=True)])

        x, state = jobs[0].job.sampler.step(
            denoiser,
            _cat([job.x for job in jobs]),
            _cat([job.time(job.i) for job in jobs]),
            _cat([job.time(job.i + 1) for job in jobs]),
            y,
            _cat([job.state for job in jobs]),
            noise,
            _cat([torch.full((len(job.x),), job.i) for job in jobs]),
        )
        for job, job_x, job_state in zip(jobs, _split(x, sizes), _split(state, sizes), strict=True):
            job.x, job.state = job_x, job_state


def kind(job: _Running) -> tuple[Any, ...]:
    """What jobs must have in common to share a batch."""

    def fields(part: Part, excluded: tuple[str, ...]) -> tuple[Any, ...]:
        values = [getattr(part, f.name) for f in own_fields(type(part)) if f.name not in excluded]
        return (type(part), *values)

    y = job.job.y
    if isinstance(y, Condition):
        values = (getattr(y, f.name) for f in dataclasses.fields(y))  # pyright: ignore[reportArgumentType]
        condition = (type(y), *(value for value in values if not isinstance(value, torch.Tensor)))
    else:
        condition = None if y is None else (y.dtype, y.device)
    guidance = tuple(fields(part, part.BY_ROW) for part in job.job.guidance)
    image = (job.x.shape[1:], job.x.dtype, job.x.device)
    return (fields(job.job.sampler, ("steps", "times")), guidance, condition, image)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    noise: NoiseSource,
    y: Tensor | Condition | None = None,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """One batch of images whose rows agree: (N, C, H, W) in the dtype and on the device of `noise.initial()`.

    y: labels (N,) int64, a Condition of N rows, or None for the null condition. `on_step(i, x)` is called
    after step i. Raises NonFiniteError if samples become NaN or infinite.
    """
    batch = Batch(denoiser)
    batch.add(Job(sampler, noise, y))
    while not (done := batch.advance(None if on_step is None else lambda _, i, x: on_step(i, x))):
        pass
    return done[0][1]


def sample_many(
    denoiser: Denoiser, jobs: Sequence[Job], *, on_step: Callable[[int, int, Tensor], None] | None = None
) -> list[Tensor]:
    """The images of each job, in order, equal to those of `sample` up to rounding. Jobs that can share a
    batch do, whatever their steps, times, seeds, conditions and guidance scales; the others run after them.

    denoiser: without guidance, which belongs to the jobs. on_step(k, i, x) is called after step i of job k.
    All jobs of a batch are in memory at once. Raises as `sample` does; NonFiniteError has the job's number.
    """
    kinds: dict[tuple[Any, ...], Batch] = {}
    images: list[Tensor | None] = [None] * len(jobs)
    with torch.no_grad():
        for number, job in enumerate(jobs):
            running = _Running(job, denoiser.schedule, number)
            kinds.setdefault(kind(running), Batch(denoiser))._add(running)
    for batch in kinds.values():
        while batch.running:
            for number, x in batch.advance(on_step):
                images[number] = x
    return [x for x in images if x is not None]


def _cat(values: Sequence[Any]) -> Any:
    """Concatenates the rows of tensors, conditions, or named tuples, tuples and dicts of these."""

    def join(*rows: Any) -> Any:
        return conditions.cat(rows) if isinstance(rows[0], Condition) else torch.cat(rows)

    return values[0] if len(values) == 1 else _map(join, *values)


def _split(value: Any, sizes: Sequence[int]) -> list[Any]:
    """The inverse of `_cat`."""
    if len(sizes) == 1:
        return [value]
    ends = itertools.accumulate(sizes)
    return [_map(lambda rows, i=end - n, j=end: rows[i:j], value) for n, end in zip(sizes, ends, strict=True)]


def _map(function: Callable[..., Any], *values: Any) -> Any:
    """Applies `function` to corresponding leaves of the values, which are equally nested; None stays None."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: _map(function, *(value[key] for value in values)) for key in first}
    if not isinstance(first, tuple):
        return function(*values)
    items = [_map(function, *column) for column in zip(*values, strict=True)]
    return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
