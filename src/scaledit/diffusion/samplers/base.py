"""What samplers share: the base class, and a schedule's numbers as factors of a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import MOST_STEPS, Schedule, broadcast_like
from scaledit.diffusion.times import Even, Times, as_times
from scaledit.part import Part, field

if TYPE_CHECKING:
    from torch import Tensor


class NoiseSource(Protocol):
    """Where a sampler's random numbers come from; see `scaledit.diffusion.noise.Noise`."""

    def initial(self) -> Tensor:
        """Standard normal (N, C, H, W): where sampling starts."""
        ...

    def step(self, i: int) -> Tensor:
        """Standard normal, as `initial`, for sampling step i = 0, 1, ..."""
        ...


class StepNoise(Protocol):
    """The noise of one step of a batch, whose rows may be at different steps of their own."""

    def __call__(self, needed: Tensor | None = None) -> Tensor:
        """Standard normal (N, C, H, W) where needed (N,) is true, zeros elsewhere: what nobody needs is not
        drawn. None: all rows need it. To be called once a step at most."""
        ...


@dataclass(frozen=True)
class Sampler(Part, kind="sampler", home="scaledit.diffusion.samplers", needs=("step",)):
    """steps: of the grid. times: which times they end at; in Python also a name ("karras"), a table or a list
    of times. evaluations: how often a step asks the denoiser.
    """

    evaluations: ClassVar[int] = 1

    steps: int = field(50, ge=1, le=MOST_STEPS, doc="steps of the grid")
    times: Times = field(Even(), doc="which times the steps end at")

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", as_times(self.times))
        super().__post_init__()

    def total_evaluations(self) -> int:
        """How often all steps together ask the denoiser."""
        return self.evaluations * self.steps

    def grid(self, schedule: Schedule) -> Tensor:
        """(steps + 1,) float64 on the CPU: descending times, the last one clean. Raises UsageError for a
        number of steps that the schedule does not have."""
        return self.times.grid(schedule, self.steps)

    def init(self, x: Tensor) -> Any:
        """The state before the first step, for rows x (N, C, H, W) of noise: None, or a named tuple or dict
        of tensors whose first dimension is the rows. Multistep methods remember; others need none."""
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
        """x at the times s from x at the times t > s, and the next state.

        x (N, C, H, W). t, s (N,) float64 and i (N,) int64, on the CPU: each row's times and the number of
        its step, from 0. condition: what the denoiser takes as y. state: row by row what the last step gave,
        or `init` where i is 0. noise: called only by the samplers that need it.

        Rows of jobs with other steps and times go through one call, so a step must not look at `steps` and
        `times`, and must give the denoiser all rows in each call.
        """
        raise NotImplementedError


def weights(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t, (N,) float64 on the CPU."""
    return schedule.alpha(t), schedule.sigma(t)


def factor(value: Tensor, like: Tensor) -> float | Tensor:
    """value (N,) as a factor of like (N, ...): one number where all rows agree, which costs no copy to the
    device, and else (N, 1, ...) in its dtype and on its device."""
    numbers = value.tolist()  # for so few numbers Python is faster than tensors
    if numbers and numbers.count(numbers[0]) == len(numbers):
        return numbers[0]
    return broadcast_like(value, like)


def rows(mask: Tensor, like: Tensor) -> Tensor:
    """mask (N,) bool, shaped to choose among rows of like (N, ...), on its device."""
    return mask.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def along_flow(schedule: Schedule, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor) -> Tensor:
    """x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps: one Euler step of the flow from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = weights(schedule, t), weights(schedule, s)
    return x + factor(alpha_s - alpha_t, x) * prediction.x0 + factor(sigma_s - sigma_t, x) * prediction.eps
