"""Rescaled guidance (Lin et al. 2023, eq. 15 and 16).

x_rescaled = x_guided std(x_plain) / std(x_guided)               std of each image, over all of its values
x          = phi x_rescaled + (1 - phi) x_guided
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.conditions import Condition
from scaledit.diffusion.guidance.base import Guidance, Guided, guide
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import broadcast_like
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class Rescale(Guidance, name="rescale"):
    """Gives x0, guided by the parts before it, the standard deviation that it has without guidance,
    against overexposed images (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16).

    eps follows, so that x_t = alpha x0 + sigma eps still holds.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("phi",)
    modifies: ClassVar[bool] = True
    reads_plain: ClassVar[bool] = True

    phi: float = field(0.7, ge=0, le=1, doc="share of the rescaled prediction; 0 changes nothing")
    channels: int | None = field(None, ge=1, none="all", doc="number of rescaled channels, from the first")

    @property
    def idle(self) -> bool:
        return isinstance(self.phi, int | float) and self.phi == 0

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        (x0, eps, log_variance), plain = guide(self.denoiser, x_t, t, y)
        deviation, wanted = (x[:, : self.channels].flatten(1).std(1) for x in (x0, plain().x0))
        ratio = torch.where(deviation > 0, wanted / deviation, 1)
        phi = torch.as_tensor(self.phi, dtype=x0.dtype, device=x0.device)
        change = broadcast_like(phi * (ratio - 1), x0) * x0
        if self.channels is not None:
            change = torch.cat([change[:, : self.channels], torch.zeros_like(x0[:, self.channels :])], dim=1)
        alpha, sigma = self.schedule.coefficients(t)
        slope = torch.where(sigma > 0, alpha / sigma, 0)
        return Guided(Prediction(x0 + change, eps - broadcast_like(slope, x0) * change, log_variance), plain)
