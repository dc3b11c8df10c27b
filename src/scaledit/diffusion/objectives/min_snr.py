"""Min-SNR weights (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    w = min(SNR, gamma),  SNR = (alpha / sigma)^2,  on || x_0 - x_hat ||^2

that is min(SNR, gamma) / SNR on the squared error of epsilon, min(SNR, gamma) on that of x_0, and on a
variance-preserving chain min(SNR, gamma) / (SNR + 1) on that of the velocity. One rule gives them all: an
error e of the output is an error e dx_hat/dout of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.objectives.base import Losses, Objective, OfOneOutput
from scaledit.diffusion.objectives.hybrid import Hybrid
from scaledit.diffusion.objectives.simple import Simple
from scaledit.diffusion.parameterization import Parameterization
from scaledit.diffusion.schedule import Schedule, as_time
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class MinSNR(OfOneOutput, name="min_snr"):
    """The squared error of another objective, simple or hybrid, with weights that are bounded where there is
    little noise. The bound of the hybrid objective is not weighted."""

    gamma: float = field(5.0, gt=0, doc="largest weight of the image's squared error")
    of: Objective = field(Simple(), doc="the objective whose squared error is weighted: simple or hybrid")

    @property
    def learns_variance(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.learns_variance

    def check(self, where: str = "") -> None:
        super().check(where)
        if not isinstance(self.of, Simple | Hybrid):
            raise UsageError(
                f"of is {self.of.part_name()}, whose error has weights of its own; use simple or hybrid"
            )

    def fits(self, schedule, parameterization):
        self.of.fits(schedule, parameterization)

    def error(self, denoiser, out, x0, eps, x_t, t):
        error = self.of.error(denoiser, out, x0, eps, x_t, t)
        return error * self.weight(denoiser.schedule, denoiser.parameterization, t).to(error)

    def losses(self, denoiser, out, x0, eps, x_t, t) -> Losses:
        whole = self.of.losses(denoiser, out, x0, eps, x_t, t)
        mse = whole.mse * self.weight(denoiser.schedule, denoiser.parameterization, t).to(whole.mse)
        return Losses(mse if whole.vlb is None else mse + whole.vlb, mse, whole.vlb)

    def weight(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """The factor of the squared error of the output at times t: float64 on the CPU, of t's shape."""
        t = as_time(t)
        alpha, sigma = schedule.coefficients(t)
        snr = (alpha / sigma) ** 2
        return snr.clamp(max=self.gamma) * image_per_output(parameterization, schedule, t) ** 2


def image_per_output(parameterization: Parameterization, schedule: Schedule, t: Tensor) -> Tensor:
    """dx_hat/dout of an output in which the image is linear: sigma / alpha for epsilon (in absolute value), 1
    for x_0, sigma for the velocity. t (N,) or (); float64 on the CPU, of t's shape."""
    channels = parameterization.channels(1)
    x_t = torch.zeros(t.numel(), 1, 1, 1, dtype=torch.float64)
    out = torch.ones(t.numel(), channels, 1, 1, dtype=torch.float64)
    # At x_t = 0 the image is the output times this factor.
    return parameterization.decode(schedule, out, x_t, t.reshape(-1)).x0.abs().reshape(t.shape)
