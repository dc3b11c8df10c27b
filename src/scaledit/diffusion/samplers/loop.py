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


class NonFiniteError(RunError):
    """Samples became NaN or infinite. rows: the job's rows that were first. step: the sampling step that made
    them so, from 0, or -1 if the initial noise was not finite. steps: of the sampler; 0 if rows choose their
    own, and step is then the evaluation. t, s: its times. job: the job's number."""

    def __init__(self, rows: list[int], step: int, steps: int, t: float, s: float, job: int = 0):
        self.rows, self.step, self.steps, self.t, self.s, self.job = rows, step, steps, t, s, job
        super().__init__(self.describe("row" if len(rows) == 1 else "rows", rows))

    def describe(self, noun: str, numbers: Sequence[int]) -> str:
        """The message, with the rows called `noun` and numbered by `numbers`."""
        listed = ", ".join(map(str, numbers[:MOST_LISTED]))
        more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
        if self.step < 0:
            return f"the noise that sampling starts from is not finite in {noun} {listed}{more}"
        if not self.steps:
            return (
                f"sampling gave numbers that are not finite: first in evaluation {self.step + 1}, at time "
                f"{self.t:g}, in {noun} {listed}{more}"
            )
        return (
            f"sampling gave numbers that are not finite: first in step {self.step + 1} of {self.steps}, from "
            f"time {self.t:g} to {self.s:g}, in {noun} {listed}{more}"
        )


class TooManyEvaluations(RunError):
    """Rows did not meet their tolerance in `most` evaluations. t: the time that the last of them reached.
    job: the job's number."""

    def __init__(self, rows: list[int], most: int, t: float, job: int = 0):
        self.rows, self.most, self.t, self.job = rows, most, t, job
        super().__init__(self.describe("row" if len(rows) == 1 else "rows", rows))

    def describe(self, noun: str, numbers: Sequence[int]) -> str:
        """The message, with the rows called `noun` and numbered by `numbers`."""
        listed = ", ".join(map(str, numbers[:MOST_LISTED]))
        return (
            f"{noun} {listed} reached only time {self.t:g} in {self.most} evaluations; raise rtol and atol "
            "(--tolerance), or max_evaluations"
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
        self.x, self.y, self.guidance = job.noise.initial(), job.y, tuple(job.guidance)
        self.grid = job.sampler.chosen_for(self.x.shape[1:]).grid(schedule)
        self.finite = _FiniteCheck(self.x, self.grid, number)
        self.state = job.sampler.init(self.x)

    def times(self) -> tuple[Tensor, Tensor]:
        """The times of the next step, for each row, (N,)."""
        return self.grid[self.i].expand(len(self.x)), self.grid[self.i + 1].expand(len(self.x))

    def stepped(self) -> bool:
        """Called after each step; returns whether rows of the job have left the batch."""
        self.finite.record(self.x, self.i)
        self.i += 1
        if self.done:
            self.finite.check()
        return self.done

    @property
    def done(self) -> bool:
        return self.i == len(self.grid) - 1

    @property
    def tick(self) -> int:
        """The tick of the sampler's `ticks` that the last step was."""
        return self.i - 1

    def images(self) -> Tensor:
        """(N, C, H, W) of all rows of the job."""
        return self.x

    def evaluations(self) -> Tensor:
        """(N,) int64, of the denoiser."""
        return torch.full((len(self.x),), self.job.sampler.total_evaluations())

    def noise(self, needed: Tensor | None) -> Tensor:
        """The noise of this step; zeros, without drawing, if no row needs it."""
        if needed is None or bool(needed.any()):
            return self.job.noise.step(self.i)
        return torch.zeros_like(self.x)


class _Paced(_Running):
    """A job whose rows choose their own steps. x, y, guidance and state are of the rows that are not done.
    rows: their places in the job."""

    def __init__(self, job: Job, schedule: Schedule, number: int):
        super().__init__(job, schedule, number)
        self.rows, self.finished = torch.arange(len(self.x)), self.x.clone()
        self.spent, self.slowest = torch.zeros(len(self.x), dtype=torch.int64), 0.0

    def times(self) -> tuple[Tensor, Tensor]:
        return self.grid[0].expand(len(self.x)), self.grid[-1].expand(len(self.x))

    def stepped(self) -> bool:
        pace = self.job.sampler.pace(self.state)
        finite = torch.isfinite(self.x).flatten(1).all(1).cpu()
        start, end = float(self.grid[0]), float(self.grid[-1])
        if not bool(finite.all()):
            t = float(pace.t[~finite].min())
            raise NonFiniteError(self.rows[~finite].tolist(), self.i, 0, t, end, self.number)
        self.spent[self.rows] = pace.evaluations
        late = ~pace.done & (pace.evaluations >= pace.most)
        if bool(late.any()):
            raise TooManyEvaluations(
                self.rows[late].tolist(), pace.most, float(pace.t[late].max()), self.number
            )
        self.i += 1
        self.slowest = (start - float(pace.t.max())) / (start - end)
        if not bool(pace.done.any()):
            return False
        self.finished[self.rows.to(self.x.device)] = self.x
        keep = (~pace.done).nonzero().flatten()
        self.rows, index = self.rows[keep], keep.to(self.x.device)
        self.x, self.y = self.x[index], None if self.y is None else self.y[index]
        self.state = _map(lambda value: value[keep.to(value.device)], self.state)
        self.guidance = tuple(part.rows(keep) for part in self.guidance)
        return True

    @property
    def done(self) -> bool:
        return not len(self.rows)

    @property
    def tick(self) -> int:
        ticks = self.job.sampler.ticks
        return ticks - 1 if self.done else min(ticks - 1, int(ticks * self.slowest))

    def images(self) -> Tensor:
        images = self.finished.clone()
        images[self.rows.to(images.device)] = self.x
        return images

    def evaluations(self) -> Tensor:
        return self.spent


def _running(job: Job, schedule: Schedule, number: int) -> _Running:
    return (_Paced if job.sampler.paced else _Running)(job, schedule, number)


class Batch:
    """Jobs whose rows go through the denoiser together. Their samplers may differ only in steps and times,
    and their guidance only in BY_ROW fields.

    Each job's images are those of the job alone, up to the network's rounding at another batch size.
    evaluations: {number: (N,) int64} of the jobs that finished, how often the denoiser was evaluated for each
    of their rows.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.running: list[_Running] = []
        self.evaluations: dict[int, Tensor] = {}
        self._guided: tuple[Denoiser, Tensor | Condition | None] | None = None

    def add(self, job: Job, number: int = 0) -> None:
        """Starts a job, whatever step the others are at. number: identifies it in `advance`.

        Raises UsageError if the schedule does not have the sampler's number of steps, ValueError if the job
        cannot be batched with the running ones, NonFiniteError if its noise is not finite.
        """
        with torch.no_grad():
            self._add(_running(job, self.denoiser.schedule, number))

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
            left = job.stepped()
            if on_step is not None:
                on_step(job.number, job.tick, job.images())
            if left:
                self._guided = None
            if not job.done:
                running.append(job)
                continue
            done.append((job.number, job.images()))
            self.evaluations[job.number] = job.evaluations()
        self.running = running
        return done

    def _step(self) -> None:
        jobs = self.running
        sizes = [len(job.x) for job in jobs]
        if self._guided is None:
            parts = merge([job.guidance for job in jobs], sizes)
            self._guided = guided(self.denoiser, parts), _cat([job.y for job in jobs])
        denoiser, y = self._guided

        def noise(needed: Tensor | None = None) -> Tensor:
            masks = [None] * len(jobs) if needed is None else needed.split(sizes)
            return _cat([job.noise(mask) for job, mask in zip(jobs, masks, strict=True)])

        t, s = (_cat(times) for times in zip(*(job.times() for job in jobs), strict=True))
        x, state = jobs[0].job.sampler.step(
            denoiser,
            _cat([job.x for job in jobs]),
            t,
            s,
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
        values = [getattr(part, f.name) for f in dataclasses.fields(part) if f.name not in excluded]  # pyright: ignore
        return (type(part), *values)

    y = job.job.y
    if isinstance(y, Condition):
        values = (getattr(y, f.name) for f in dataclasses.fields(y))  # pyright: ignore[reportArgumentType]
        condition = (type(y), *(value for value in values if not isinstance(value, torch.Tensor)))
    else:
        condition = None if y is None else (y.dtype, y.device)
    guidance = tuple(fields(part, ("inside", *part.BY_ROW)) for part in job.job.guidance)
    image = (job.x.shape[1:], job.x.dtype, job.x.device)
    return (fields(job.job.sampler, ("steps", "times")), guidance, condition, image)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    noise: NoiseSource,
    y: Tensor | Condition | None = None,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_evaluations: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """One batch of images whose rows agree: (N, C, H, W) in the dtype and on the device of `noise.initial()`.

    y: labels (N,) int64, a Condition of N rows, or None for the null condition. `on_step(i, x)` is called
    after step i. `on_evaluations` is called once, with how often the denoiser was evaluated for each row,
    (N,) int64. Raises NonFiniteError if samples become NaN or infinite, TooManyEvaluations if a tolerance
    cannot be met.
    """
    batch = Batch(denoiser)
    batch.add(Job(sampler, noise, y))
    while not (done := batch.advance(None if on_step is None else lambda _, i, x: on_step(i, x))):
        pass
    if on_evaluations is not None:
        on_evaluations(batch.evaluations[0])
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
            running = _running(job, denoiser.schedule, number)
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
