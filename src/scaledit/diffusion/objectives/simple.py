"""The mean squared error of the network's output.

L_simple = || target - out ||^2                                        (Ho et al. 2020, eq. 14)
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.objectives.base import OfOneOutput, squared_error


@dataclass(frozen=True)
class Simple(OfOneOutput, name="simple"):
    """Mean squared error on the parameterization's target; a learned variance is left untrained."""

    def error(self, denoiser, out, x0, eps, x_t, t):
        return squared_error(denoiser, out, x0, eps, t)
