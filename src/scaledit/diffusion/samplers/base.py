"""What samplers share: the base class, and a schedule's coefficients as factors of a batch of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import MOST_STEPS, Schedule, broadcast_like
from scaledit.diffusion.times import Even, Times, as_times
from scaledit.part import Part, field

if TYPE_CHECKING:
    from torch import Tensor


class NoiseSource(Protocol):
    """A sampler's source of random numbers; see `scaledit.diffusion.noise.Noise`."""

    def initial(self) -> Tensor:
        """Standard normal (N, C, H, W), from which sampling starts."""
        ...

    def step(self, i: int) -> Tensor:
        """Standard normal (N, C, H, W) for sampling step i = 0, 1, ..."""
        ...


class StepNoise(Protocol):
    """The noise of one step of a batch whose rows may be at different step numbers."""

    def __call__(self, needed: Tensor | None = None) -> Tensor:
        """Standard normal (N, C, H, W). needed: (N,) bool, the rows that use it (None: all); jobs without
        such a row draw nothing and get zeros. Call it at most once per step."""
        ...


class Pace(NamedTuple):
    """How far rows are that choose their own steps, (N,) on the CPU. t: float64, the times reached. done:
    bool. evaluations: int64, of the denoiser so far. most: the evaluations at which sampling fails."""

    t: Tensor
    done: Tensor
    evaluations: Tensor
    most: int


@dataclass(frozen=True)
class Sampler(Part, kind="sampler", home="scaledit.diffusion.samplers", needs=("step",)):
    """steps: number of steps of the grid. times: how their times are chosen; in Python also a name
    ("karras"), a table or a list of times. evaluations: evaluations of the denoiser per step. paced: whether
    each row chooses its own steps, so that `pace` says how far it is."""

    evaluations: ClassVar[int] = 1
    paced: ClassVar[bool] = False

    steps: int = field(50, ge=1, le=MOST_STEPS, doc="steps of the grid")
    times: Times = field(Even(), doc="how the times of the grid are chosen")

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", as_times(self.times))
        super().__post_init__()

    @property
    def ticks(self) -> int:
        """The units in which progress is counted: steps."""
        return self.steps

    def pace(self, state: Any) -> Pace:
        """How far the rows with this state are, if the sampler is `paced`. Its `step` is called with the
        first and the last time of the grid, until all rows are done; rows that are done leave the batch."""
        raise NotImplementedError

    def total_evaluations(self) -> int:
        """Evaluations of the denoiser in all steps together."""
        return self.evaluations * self.steps

    def evaluated(self, schedule: Schedule) -> Tensor:
        """The times at which it evaluates the denoiser, float64 on the CPU, which say what guidance that
        depends on the time costs. By default the start of each step, `evaluations` times."""
        return self.grid(schedule)[:-1].repeat_interleave(self.evaluations)

    def grid(self, schedule: Schedule) -> Tensor:
        """(steps + 1,) float64 on the CPU: descending times, the last one clean. Raises UsageError if the
        schedule does not have that many steps."""
        return self.times.grid(schedule, self.steps)

    def chosen_for(self, shape: Sequence[int]) -> Self:
        """The sampler for inputs (C, H, W), whose times may depend on their shape."""
        times = self.times.chosen_for(shape)
        return self if times is self.times else replace(self, times=times)

    def init(self, x: Tensor) -> Any:
        """The state before the first step, for initial noise x (N, C, H, W): None, or for multistep methods a
        named tuple or dict of tensors whose first dimension is the rows."""
        return None

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Tensor | Condition | None,
        state: Any,
        noise: StepNoise,
        i: Tensor,
    ) -> tuple[Tensor, Any]:
        """Returns x at the times s, given x at the times t > s, and the next state.

        x (N, C, H, W). t, s (N,) float64 and i (N,) int64, on the CPU: each row's times and step number, from
        0. condition: the denoiser's y. state: what the previous step returned for each row, or `init`
        returned where i is 0. noise: called only if the sampler needs it.

        One call may mix rows of jobs with different steps and times, so a step must not read `self.steps` or
        `self.times`, and must pass all rows to the denoiser in each call.
        """
        raise NotImplementedError


def factor(value: Tensor, like: Tensor) -> float | Tensor:
    """value (N,) as a factor of like (N, ...): a float if all rows agree, which needs no copy to the device,
    and otherwise (N, 1, ...) in like's dtype and on its device."""
    numbers = value.tolist()  # for so few numbers Python is faster than tensor operations
    if numbers and numbers.count(numbers[0]) == len(numbers):
        return numbers[0]
    return broadcast_like(value, like)


def row_mask(mask: Tensor, like: Tensor) -> Tensor:
    """mask (N,) bool, shaped to select rows of like (N, ...), on its device."""
    return mask.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def along_flow(schedule: Schedule, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor) -> Tensor:
    """x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps: one Euler step of the flow from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t), schedule.coefficients(s)
    return x + factor(alpha_s - alpha_t, x) * prediction.x0 + factor(sigma_s - sigma_t, x) * prediction.eps
