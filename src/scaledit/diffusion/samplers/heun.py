"""Heun's method on the flow: Euler's step, with x0 and eps averaged over both of its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.diffusion.samplers.base import Sampler, factor, row_mask
from scaledit.diffusion.schedule import MOST_STEPS
from scaledit.lazy import torch
from scaledit.part import field


@dataclass(frozen=True)
class Heun(Sampler, name="heun"):
    """Second order, the trapezoidal rule on the flow: two evaluations per step, one in the last (Karras et
    al. 2022, algorithm 1, in the schedule's coordinates)."""

    evaluations: ClassVar[int] = 2

    steps: int = field(25, ge=1, le=MOST_STEPS, doc="steps of the grid, two evaluations each")

    def total_evaluations(self) -> int:
        return 2 * self.steps - 1

    def evaluated(self, schedule):
        grid = self.grid(schedule)
        return torch.cat([grid[:-1], grid[1:-1]])

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        schedule = denoiser.schedule
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t), schedule.coefficients(s)
        d_alpha, d_sigma = factor(alpha_s - alpha_t, x), factor(sigma_s - sigma_t, x)
        x0, eps, _ = denoiser(x, t, condition)
        euler = x + d_alpha * x0 + d_sigma * eps
        last = sigma_s == 0  # a denoiser is not defined on the clean image
        if bool(last.all()):
            return euler, None
        x0_s, eps_s, _ = denoiser(euler, torch.where(last, t, s), condition)
        heun = x + d_alpha * (x0 + x0_s) / 2 + d_sigma * (eps + eps_s) / 2
        return (torch.where(row_mask(last, x), euler, heun) if bool(last.any()) else heun), None
