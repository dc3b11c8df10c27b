"""Samplers: from noise to image along a schedule, with any denoiser. A sampler is a `grid` of times and one
`step` from t to s < t.

    flow      dx_t = x0 d alpha + eps d sigma
    Euler     x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps
    Heun      Euler with x0 and eps averaged over both ends of the step
    Adaptive  Heun, with steps whose difference from Euler is below a tolerance
    DDIM      x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z     v = Var q(x_s | x_t, x_0)
    DDPM      x_s ~ N(mean of q(x_s | x_t, x0), learned or fixed variance)
    DPMSolver x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D     D from two x0's
    UniPC     DPMSolver, with every step but the last corrected by D from three x0's, one at its own end

The flow is written with d alpha and d sigma instead of dt: it needs no derivative and no division, and holds
on every schedule up to both of its ends. One Euler step is one DDIM step.

There is one file per sampler; `base` is what they share, and `loop` runs them.
"""

from scaledit.diffusion.samplers.adaptive import Adaptive
from scaledit.diffusion.samplers.base import NoiseSource, Pace, Sampler
from scaledit.diffusion.samplers.ddim import DDIM
from scaledit.diffusion.samplers.ddpm import DDPM
from scaledit.diffusion.samplers.dpm import DPMSolver
from scaledit.diffusion.samplers.euler import Euler
from scaledit.diffusion.samplers.heun import Heun
from scaledit.diffusion.samplers.loop import (
    Batch,
    Job,
    NonFiniteError,
    TooManyEvaluations,
    sample,
    sample_many,
)
from scaledit.diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "Adaptive",
    "Batch",
    "DPMSolver",
    "Euler",
    "Heun",
    "Job",
    "NoiseSource",
    "NonFiniteError",
    "Pace",
    "Sampler",
    "TooManyEvaluations",
    "UniPC",
    "sample",
    "sample_many",
]
