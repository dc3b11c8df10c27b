"""x-prediction with velocity loss (Li & He 2025, "Back to Basics", arXiv:2511.13720).

    v(x) = (x_t - x) / max(t, clamp)          L = || v(x_0) - v(x_hat) ||^2

on the linear flow, with t = 0 for data, where x_hat is the image that the output stands for. For t >= clamp
v(x_0) is the velocity eps - x_0, and the loss is || x_0 - x_hat ||^2 / t^2; below it the weight stays at
1 / clamp^2. The clamp belongs to the loss alone: the network predicts what its parameterization says, and
samplers know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.objectives.base import OfOneOutput, diffuse, mean
from scaledit.diffusion.parameterization import Epsilon, LearnedRange
from scaledit.diffusion.schedule import LinearFlow, broadcast_like
from scaledit.errors import UsageError
from scaledit.part import field


@dataclass(frozen=True)
class VelocityLoss(OfOneOutput, name="velocity"):
    """The velocity's squared error for a network that predicts the image (diffusion.prediction=x0), on the
    linear flow.

    With the velocity parameterization it is the simple objective, with the weight (t / clamp)^2 below the
    clamp. Noise does not determine the image at t = 1, so epsilon is refused.
    """

    clamp: float = field(0.05, gt=0, le=1, doc="smallest t that the error is divided by")

    def fits(self, schedule, parameterization):
        if not isinstance(schedule, LinearFlow):
            raise UsageError(
                "the velocity objective is defined on the linear flow, where t is the amount of noise; set "
                "diffusion.schedule=flow, or use the simple objective"
            )
        inside = parameterization.mean if isinstance(parameterization, LearnedRange) else parameterization
        if isinstance(inside, Epsilon):
            raise UsageError(
                "the velocity objective needs the image that an output stands for, which predicted noise "
                "does not determine near t = 1; set diffusion.prediction=x0"
            )

    def error(self, denoiser, out, x0, eps, x_t, t):
        # x_t of the target's own image and noise: that of another sample has a velocity of its own.
        target = diffuse(denoiser.schedule, x0, eps, t) - x0
        difference = (x_t - denoiser.decode(out, x_t, t).x0) - target
        return mean((difference / broadcast_like(t.clamp(min=self.clamp), x0)) ** 2)
