"""Euler's method on the flow: x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps."""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.samplers.base import Sampler, along_flow


@dataclass(frozen=True)
class Euler(Sampler, name="euler"):
    """First order; equal to DDIM with eta = 0 on every schedule, up to rounding."""

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        return along_flow(denoiser.schedule, x, denoiser(x, t, condition), t, s), None
