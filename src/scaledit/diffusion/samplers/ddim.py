"""DDIM: x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z,   v = Var q(x_s | x_t, x_0)."""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.samplers.base import Sampler, factor
from scaledit.diffusion.schedule import transition
from scaledit.part import field


@dataclass(frozen=True)
class DDIM(Sampler, name="ddim"):
    """Song et al. 2021, eq. 12; eta = 0 is deterministic, eta = 1 has DDPM's posterior variance."""

    eta: float = field(0.0, ge=0, doc="0 is deterministic, 1 has the posterior variance")

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        alpha_s, sigma_s = denoiser.schedule.coefficients(s)
        x0, eps, _ = denoiser(x, t, condition)
        variance = self.eta**2 * transition(denoiser.schedule, t, s).variance
        x = factor(alpha_s, x) * x0 + factor((sigma_s**2 - variance).clamp(min=0).sqrt(), x) * eps
        needed = variance > 0
        return (x + factor(variance.sqrt(), x) * noise(needed) if bool(needed.any()) else x), None
