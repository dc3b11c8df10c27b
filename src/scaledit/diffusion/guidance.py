"""Guidance: Denoiser -> Denoiser. Knows no sampler and no network.

eps(x_t, y) <- eps(x_t, null) + scale (eps(x_t, y) - eps(x_t, null))     (Ho & Salimans 2022, eq. 6;
                                                                          scale = 1 is no guidance)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.diffusion.denoiser import Denoiser, NetDenoiser
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance on the first `channels` channels, or on all (None).

    The paper's figures guide three of the four latent channels. The other channels and the variance are
    the conditional half's. Without a label there is nothing to guide towards: y = None passes through.
    """

    inside: Denoiser
    scale: float
    channels: int | None = 3

    @property
    def schedule(self) -> Schedule:
        return self.inside.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        if y is None:
            return self.inside(x_t, t, None)
        if isinstance(self.inside, NetDenoiser):
            conditional, null = self.inside.conditional_and_null(x_t, t, y)
        else:
            conditional, null = self.inside(x_t, t, y), self.inside(x_t, t, None)

        def guide(towards: Tensor, away: Tensor) -> Tensor:
            guided = away + self.scale * (towards - away)
            if self.channels is None:
                return guided
            return torch.cat([guided[:, : self.channels], towards[:, self.channels :]], dim=1)

        # x0 and eps are affine in each other at a given x_t, so guiding both keeps them consistent.
        return Prediction(
            x0=guide(conditional.x0, null.x0),
            eps=guide(conditional.eps, null.eps),
            log_variance=conditional.log_variance,
        )
