"""The one sampling loop: all rows of a batch make a step, each from its own time to its own next one.

    x_s = step(denoiser, x_t, t, s, ...)         t, s, i: one for each row

`sample` is the case where all rows agree: one job. `sample_many` runs jobs with different numbers of steps,
seeds, guidance scales and conditions together, and `Batch` takes further jobs while others are under way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit import conditions
from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.guidance import Guidance, guided, together
from scaledit.diffusion.samplers.base import NoiseSource, Sampler
from scaledit.diffusion.schedule import Schedule
from scaledit.errors import RunError
from scaledit.part import Part
from scaledit.values import own_fields

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class NonFiniteError(RunError):
    """A sampler's numbers stopped being finite. rows: (N',) of the job's rows, those that were the first.
    step: the sampling step that made them so, from 0, or -1 where the noise came so. t, s: its times. job:
    its place among several."""

    def __init__(self, rows: list[int], step: int, steps: int, t: float, s: float, job: int = 0):
        self.rows, self.step, self.steps, self.t, self.s, self.job = rows, step, steps, t, s, job
        super().__init__(self.said("row" if len(rows) == 1 else "rows", rows))

    def said(self, what: str, numbers: Sequence[int]) -> str:
        """The message, with the rows under whatever names the caller has for them."""
        some = ", ".join(map(str, numbers[:NAMED]))
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        if self.step < 0:
            return f"the noise that sampling starts from is not finite in {what} {some}{more}"
        return (
            f"sampling gave numbers that are not finite: first in step {self.step + 1} of {self.steps}, from "
            f"time {self.t:g} to {self.s:g}, in {what} {some}{more}"
        )


NAMED = 8
"""Rows that a message names, at most."""


class _FirstNonFinite:
    """The step at which each row of a job first was not finite. Kept where the images are, so that a GPU is
    not waited for in every step, but once, after the last; a CPU needs no waiting and is asked at once. One
    pass over x a step, next to nothing beside a network's."""

    def __init__(self, grid: Tensor, job: int):
        self.grid, self.job, self.first = grid, job, None

    def see(self, x: Tensor, step: int) -> None:
        """Raises NonFiniteError where it is known at once."""
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if self.first is None:
            self.first = torch.full(bad.shape, len(self.grid), device=x.device)
        self.first = torch.where(bad, self.first.clamp(max=step), self.first)
        if x.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises NonFiniteError."""
        steps = len(self.grid) - 1
        first = [] if self.first is None else self.first.tolist()
        if first and (step := min(first)) <= steps:
            rows = [row for row, at in enumerate(first) if at == step]
            t, s = float(self.grid[step]), float(self.grid[step + 1])
            raise NonFiniteError(rows, step, steps, t, s, self.job)


@dataclass(frozen=True)
class Job:
    """Images to sample together. noise: of N rows. y: labels (N,) int64, a Condition of N rows, or None for
    nothing in particular. guidance: parts around the denoiser, the first the innermost."""

    sampler: Sampler
    noise: NoiseSource
    y: Tensor | Condition | None = None
    guidance: Sequence[Guidance] = ()


class _Running:
    """A job that is under way: its rows x, what its sampler remembers of them, and its next step i."""

    def __init__(self, job: Job, schedule: Schedule, number: int):
        self.job, self.number, self.i = job, number, 0
        self.x = job.noise.initial()
        self.grid = job.sampler.grid(schedule)
        self.watch = _FirstNonFinite(self.grid, number)
        self.watch.see(self.x, -1)
        self.state = job.sampler.init(self.x)

    def time(self, ahead: int) -> Tensor:
        """The time of each row, (N,), at the step i + ahead."""
        return self.grid[self.i + ahead].expand(len(self.x))

    def noise(self, needed: Tensor | None) -> Tensor:
        """The noise of this step, or zeros where none of the rows needs it: then it is not drawn."""
        if needed is None or bool(needed.any()):
            return self.job.noise.step(self.i)
        return torch.zeros_like(self.x)


class Batch:
    """Jobs whose rows go through the denoiser together. They are of one `kind`: their samplers differ in
    steps and times alone, their guidance in what it takes by row.

    Each job's images are as they are alone, but for how the network rounds in batches of another size.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.running: list[_Running] = []
        self._around: tuple[Denoiser, Tensor | Condition | None] | None = None

    def add(self, job: Job, number: int = 0) -> None:
        """Begins a job, whatever step the others are at. number: what `advance` calls it.

        Raises UsageError for a number of steps that the schedule lacks, ValueError for a job of another kind
        than those that are under way, NonFiniteError where its noise is not finite.
        """
        with torch.no_grad():
            self._add(_Running(job, self.denoiser.schedule, number))

    def _add(self, new: _Running) -> None:
        if self.running and kind(new) != kind(self.running[0]):
            raise ValueError("this job cannot go with the others: its sampler, guidance or images are others")
        self.running.append(new)
        self._around = None

    def advance(self, on_step: Callable[[int, int, Tensor], None] | None = None) -> list[tuple[int, Tensor]]:
        """One step of every row. Gives (number, images (N, C, H, W)) of the jobs that are done.

        on_step(number, i, x) is called for each job after its step i. Raises NonFiniteError.
        """
        with torch.no_grad():
            self._step()
        done, going = [], []
        for job in self.running:
            job.watch.see(job.x, job.i)
            if on_step is not None:
                on_step(job.number, job.i, job.x)
            job.i += 1
            if job.i < len(job.grid) - 1:
                going.append(job)
                continue
            job.watch.check()
            done.append((job.number, job.x))
        if done:
            self.running, self._around = going, None
        return done

    def _step(self) -> None:
        jobs = self.running
        sizes = [len(job.x) for job in jobs]
        if self._around is None:
            parts = together([tuple(job.job.guidance) for job in jobs], sizes)
            self._around = guided(self.denoiser, parts), _cat([job.job.y for job in jobs])
        denoiser, y = self._around

        def noise(needed: Tensor | None = None) -> Tensor:
            of_each = [None] * len(jobs) if needed is None else needed.split(sizes)
            return _cat([job.noise(of) for job, of in zip(jobs, of_each, strict=True)])

        x, state = jobs[0].job.sampler.step(
            denoiser,
            _cat([job.x for job in jobs]),
            _cat([job.time(0) for job in jobs]),
            _cat([job.time(1) for job in jobs]),
            y,
            _cat([job.state for job in jobs]),
            noise,
            _cat([torch.full((len(job.x),), job.i) for job in jobs]),
        )
        for job, of_x, of_state in zip(jobs, _split(x, sizes), _split(state, sizes), strict=True):
            job.x, job.state = of_x, of_state


def kind(job: _Running) -> tuple[Any, ...]:
    """What jobs of one batch have in common."""

    def fields(part: Part, but: tuple[str, ...]) -> tuple[Any, ...]:
        values = [getattr(part, one.name) for one in own_fields(type(part)) if one.name not in but]
        return (type(part), *values)

    y = job.job.y
    if isinstance(y, Condition):
        values = (getattr(y, one.name) for one in dataclasses.fields(y))  # pyright: ignore[reportArgumentType]
        asked = (type(y), *(value for value in values if not isinstance(value, torch.Tensor)))
    else:
        asked = None if y is None else (y.dtype, y.device)
    guidance = tuple(fields(part, part.BY_ROW) for part in job.job.guidance)
    image = (job.x.shape[1:], job.x.dtype, job.x.device)
    return (fields(job.job.sampler, ("steps", "times")), guidance, asked, image)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    noise: NoiseSource,
    y: Tensor | Condition | None = None,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """One batch of images whose rows agree: (N, C, H, W) in the dtype and on the device of `noise.initial()`.

    y: labels (N,) int64, a Condition of N rows, or None for nothing in particular. `on_step(i, x)` is called
    after step i (progress, films).

    Raises NonFiniteError, a RunError, that names the step and the rows where numbers first were not finite.
    """
    batch = Batch(denoiser)
    batch.add(Job(sampler, noise, y))
    while True:
        done = batch.advance(None if on_step is None else lambda _, i, x: on_step(i, x))
        if done:
            return done[0][1]


def sample_many(
    denoiser: Denoiser, jobs: Sequence[Job], *, on_step: Callable[[int, int, Tensor], None] | None = None
) -> list[Tensor]:
    """The images of each job, in order, each as `sample` gives them alone but for rounding: jobs that can go
    together do, whatever their steps, times, seeds, conditions and guidance scales; all others after them.

    denoiser: without guidance, which each job has its own of. on_step(k, i, x) is called after step i of job
    k. All jobs of a kind are in memory at once. Raises as `sample` does; NonFiniteError says which job.
    """
    kinds: dict[tuple[Any, ...], Batch] = {}
    images: list[Tensor | None] = [None] * len(jobs)
    with torch.no_grad():
        for number, job in enumerate(jobs):
            new = _Running(job, denoiser.schedule, number)
            kinds.setdefault(kind(new), Batch(denoiser))._add(new)
    for batch in kinds.values():
        while batch.running:
            for number, x in batch.advance(on_step):
                images[number] = x
    return [x for x in images if x is not None]


def _cat(values: Sequence[Any]) -> Any:
    """Rows after rows, of tensors, conditions, or named tuples, tuples and dicts of these; None of Nones."""
    first = values[0]
    if len(values) == 1 or first is None:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Condition):
        return conditions.cat(values)
    if isinstance(first, dict):
        return {key: _cat([value[key] for value in values]) for key in first}
    return _like(first, [_cat(column) for column in zip(*values, strict=True)])


def _split(value: Any, sizes: Sequence[int]) -> list[Any]:
    """The inverse of `_cat`."""
    if len(sizes) == 1 or value is None:
        return [value] * len(sizes)
    if isinstance(value, torch.Tensor):
        return list(value.split(list(sizes)))
    if isinstance(value, dict):
        columns = {key: _split(one, sizes) for key, one in value.items()}
        return [{key: column[k] for key, column in columns.items()} for k in range(len(sizes))]
    columns = [_split(one, sizes) for one in value]
    return [_like(value, [column[k] for column in columns]) for k in range(len(sizes))]


def _like(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
