"""Many settings sampled together from the same noise, with nothing evaluated twice.

    x_T --+-- guidance outside of its interval: one trajectory for all scales --+-- scale 1.5 -- ...
          |                                                                     +-- scale 4   -- ...
          +-- another number of steps: only the prediction at x_T is shared

Settings with one sampler walk as one group until their images differ, bit by bit, so that every kind of
sampler and guidance may be shared: also DDPM, whose noise depends on the image and the step only. Within a
step of a group the network's outputs are remembered, so the predictions with and without the condition serve
all guidance scales. The prediction at the initial noise serves all numbers of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit import assemble, conditions, diffusion
from scaledit.conditions import Condition
from scaledit.config import SampleConfig
from scaledit.diffusion import NetDenoiser, Sampler
from scaledit.diffusion.guidance import active
from scaledit.diffusion.parameterization import Prediction
from scaledit.pipeline import Pipeline

Given = Tensor | Condition | None


class _Output(NamedTuple):
    """What a network returned. asked: what else than its output."""

    x: Tensor
    t: Tensor
    y: Given
    asked: tuple[Any, ...]
    out: Any


@dataclass
class Memory:
    """Outputs of a network that may be asked for again. evaluated: rows that passed through the network, over
    its whole life."""

    outputs: list[_Output] = field(default_factory=list)
    evaluated: int = 0

    def find(self, x: Tensor, t: Tensor, y: Given, asked: tuple[Any, ...]) -> Any:
        """The output for these inputs; None if it is unknown."""
        for one in self.outputs:
            if one.asked == asked and torch.equal(one.t, t) and same(one.y, y) and torch.equal(one.x, x):
                return one.out
        return None


@dataclass(frozen=True)
class Remembering(NetDenoiser):
    """A network's denoiser that asks the network for no output that `memory` has. early: always ask for the
    early head too, so that both kinds of requests share an evaluation."""

    memory: Memory = field(default_factory=Memory)
    early: bool = False

    @classmethod
    def of(cls, denoiser: NetDenoiser, early: bool = False) -> Remembering:
        return cls(denoiser.net, denoiser.schedule, denoiser.parameterization, early=early)

    def output(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Given,
        second: Tensor | None = None,
        hidden: Sequence[int] = (),
        early: bool = False,
    ) -> Any:
        asked = (None if second is None else tuple(second.expand(len(x_t)).tolist()), tuple(hidden))
        more = early or self.early
        whole, t = (*asked, more), t.expand(len(x_t))
        out = self.memory.find(x_t, t, y, whole)
        if out is None:
            out = super().output(x_t, t, y, second, hidden, more)
            self._remember(x_t, t, y, whole, out)
        return out.out if more and not (early or hidden) else out

    def conditional_and_null(
        self, x_t: Tensor, t: Tensor, y: Tensor | Condition
    ) -> tuple[Prediction, Prediction]:
        """From one batch of 2N rows if the network has seen neither of them."""
        asked, t = (None, (), False), t.expand(len(x_t))
        known = [self.memory.find(x_t, t, given, asked) for given in (y, None)]
        if all(out is None for out in known) and not self.early:
            if isinstance(y, Condition):
                both: Any = conditions.cat([y, y.null()])
            else:
                both = torch.cat([y, torch.full_like(y, self.net.null_label)])
            halves = super().output(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
            for one, out in zip((y, None), halves, strict=True):
                self._remember(x_t, t, one, asked, out)
        return self(x_t, t, y), self(x_t, t, None)

    def _remember(self, x_t: Tensor, t: Tensor, y: Given, asked: tuple[Any, ...], out: Any) -> None:
        self.memory.evaluated += len(x_t)
        self.memory.outputs.append(_Output(x_t, t, y, asked, out))


def same(a: Any, b: Any) -> bool:
    """Whether two tensors, conditions, or nested tuples and dicts of them are equal, bit for bit; NaN equals
    NaN."""
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Condition) and type(a) is type(b):
        names = [one.name for one in dataclasses.fields(a)]  # pyright: ignore[reportArgumentType]
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    return type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b


class Drawn(NamedTuple):
    """Images that several settings share, (N, C, H, W); None if they are not finite. members: the numbers of
    the settings."""

    members: tuple[int, ...]
    x: Tensor | None


class _Group(NamedTuple):
    members: tuple[int, ...]
    x: Tensor
    state: Any


def sample_shared(
    denoisers: Sequence[diffusion.Denoiser],
    samplers: Sequence[Sampler],
    noise: diffusion.NoiseSource,
    y: Given,
    memories: Sequence[Memory],
    on_step: Callable[[int], None] = lambda settings: None,
) -> list[Drawn]:
    """The images of each setting, those of `diffusion.sample` up to the rounding of the network.

    denoisers, samplers: one per setting, guided denoisers around one or several `Remembering`. memories: of
    these; all are empty afterwards. on_step: called with the number of settings that made a step.
    """
    initial = noise.initial()
    begun: list[list[_Output]] = [[] for _ in memories]
    done: list[Drawn] = []
    for sampler in dict.fromkeys(samplers):
        schedule = denoisers[0].schedule
        grid = sampler.grid(schedule)
        members = tuple(i for i, one in enumerate(samplers) if one == sampler)
        groups = [_Group(members, initial, sampler.init(initial))]
        for i in range(len(grid) - 1):
            step_noise = _StepNoise(noise, initial, i)
            split: list[_Group] = []
            for group in groups:
                for memory, first in zip(memories, begun, strict=True):
                    memory.outputs = list(first) if i == 0 else []
                split += _advanced(group, sampler, denoisers, grid, i, y, step_noise)
                if i == 0:
                    begun = [[one for one in m.outputs if torch.equal(one.x, initial)] for m in memories]
            groups = [group for group in split if bool(group.x.isfinite().all())]
            lost = [group.members for group in split if not bool(group.x.isfinite().all())]
            done += [Drawn(numbers, None) for numbers in lost]
            on_step(len(members))
        done += [Drawn(group.members, group.x) for group in groups]
    for memory in memories:
        memory.outputs = []
    return done


def _advanced(
    group: _Group,
    sampler: Sampler,
    denoisers: Sequence[diffusion.Denoiser],
    grid: Tensor,
    i: int,
    y: Given,
    noise: _StepNoise,
) -> list[_Group]:
    """The groups that one becomes by a step: settings whose images are still equal stay together."""
    t, s, number = (value.expand(len(group.x)) for value in (grid[i], grid[i + 1], torch.tensor(i)))
    children: list[_Group] = []
    for member in group.members:
        x, state = sampler.step(denoisers[member], group.x, t, s, y, group.state, noise, number)
        for k, child in enumerate(children):
            if same(child.x, x) and same(child.state, state):
                children[k] = child._replace(members=(*child.members, member))
                break
        else:
            children.append(_Group((member,), x, state))
    return children


class _StepNoise:
    """The noise of a step, drawn once for all settings."""

    def __init__(self, noise: diffusion.NoiseSource, like: Tensor, i: int):
        self.noise, self.like, self.i = noise, like, i
        self.drawn: Tensor | None = None

    def __call__(self, needed: Tensor | None = None) -> Tensor:
        if needed is not None and not bool(needed.any()):
            return torch.zeros_like(self.like)
        if self.drawn is None:
            self.drawn = self.noise.step(self.i)
        return self.drawn


class Images(NamedTuple):
    """The images (n, H, W, 3) uint8 of a batch that several settings share; None if they are not finite."""

    members: tuple[int, ...]
    images: np.ndarray | None


@dataclass
class Shared:
    """Samples several settings of one model together. Settings that differ in nothing are one.

    settings: [sample] sections of one sampler with different steps, and of any guidance; of one seed.
    """

    pipeline: Pipeline
    settings: Sequence[SampleConfig]

    def __post_init__(self) -> None:
        for one in self.settings:
            self.pipeline.check(one)
            self.pipeline.opened(one.guidance)
        parts = [part for one in self.settings for part in active(one.guidance)]
        config = self.pipeline.config
        plain = assemble.denoiser(config.diffusion, self.pipeline.net)
        early = bool(getattr(config.model, "early_output", 0)) and any(
            part.NAME == "internal" for part in parts
        )
        self._own = Remembering.of(plain, early)
        others = {
            path: other._replace(denoiser=Remembering.of(other.denoiser))
            if isinstance(other.denoiser, NetDenoiser)
            else other
            for path, other in self.pipeline.others.items()
        }
        inside = dataclasses.replace(self.pipeline, others=others)
        self._memories = [
            self._own.memory,
            *(one.denoiser.memory for one in others.values() if isinstance(one.denoiser, Remembering)),
        ]
        self._denoisers = [
            assemble.guided(self._own, inside.opened(active(one.guidance))) for one in self.settings
        ]

    @property
    def evaluated(self) -> int:
        """Evaluations of networks so far: an image that passes through one counts once."""
        return sum(memory.evaluated for memory in self._memories)

    def batches(
        self,
        labels: Sequence[int],
        batch_size: int,
        on_step: Callable[[int], None] = lambda n: None,
        start: int = 0,
    ) -> Iterator[tuple[slice, list[Images]]]:
        """Which images of each batch are which settings', for the images start..start + len(labels) - 1 of
        these labels, with the rows of `labels` that they have. on_step: called with the images times the
        settings that made a step."""
        pipeline, samplers = self.pipeline, [one.sampler for one in self.settings]
        y = pipeline.labels(labels)
        for first in range(0, len(y), batch_size):
            rows = slice(first, min(first + batch_size, len(y)))
            indices = range(start + rows.start, start + rows.stop)
            shape = pipeline.config.model.shape
            noise = diffusion.Noise(self.settings[0].seed, indices, shape, pipeline.device)

            def stepped(settings: int, n: int = rows.stop - rows.start) -> None:
                on_step(settings * n)

            with torch.no_grad():
                drawn = sample_shared(
                    self._denoisers, samplers, noise, y[rows].to(pipeline.device), self._memories, stepped
                )
                yield rows, [Images(one.members, self._decoded(one.x, start + first)) for one in drawn]

    def _decoded(self, x: Tensor | None, first: int) -> np.ndarray | None:
        return None if x is None else self.pipeline.decoded(x.float().cpu(), first)
