"""Samplers: from noise to image along a schedule, over any denoiser. Each chooses its times, its `grid`, and
is one `step` from t to s < t.

    flow      dx_t = x0 d alpha + eps d sigma
    Euler     x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps
    Heun      the same with x0, eps averaged over both ends of the step
    DDIM      x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z     v = Var q(x_s | x_t, x_0)
    DDPM      x_s ~ N(mean of q(x_s | x_t, x0), learned or fixed variance)
    DPMSolver x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D     D from two x0's
    UniPC     the same, and every step but the last made again with D from three x0's, its own end's too

Writing the flow with d alpha and d sigma, not dt, needs no derivative and no division, and holds for every
schedule up to both of its ends; one Euler step of it is one DDIM step.

One file for each sampler; `base` is what they share, `loop` runs them.
"""

from scaledit.diffusion.samplers.base import NoiseSource, Sampler
from scaledit.diffusion.samplers.ddim import DDIM
from scaledit.diffusion.samplers.ddpm import DDPM
from scaledit.diffusion.samplers.dpm import DPMSolver
from scaledit.diffusion.samplers.euler import Euler
from scaledit.diffusion.samplers.heun import Heun
from scaledit.diffusion.samplers.loop import Batch, Job, NonFiniteError, sample, sample_many
from scaledit.diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "Batch",
    "DPMSolver",
    "Euler",
    "Heun",
    "Job",
    "NoiseSource",
    "NonFiniteError",
    "Sampler",
    "UniPC",
    "sample",
    "sample_many",
]
