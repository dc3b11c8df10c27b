"""Classifier-free guidance (Ho & Salimans 2022).

eps(x_t, y) <- eps(x_t, null) + scale (eps(x_t, y) - eps(x_t, null))     (eq. 6; scale = 1 is no guidance)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.conditions import Condition
from scaledit.diffusion.guidance.base import Guidance, Guided, conditional_and_null, extrapolated, guide
from scaledit.lazy import Tensor
from scaledit.part import field


@dataclass(frozen=True)
class ClassifierFree(Guidance, name="classifier_free"):
    """Classifier-free guidance on all channels, or on the first `channels` of them (Ho & Salimans 2022, eq.
    6): away from the prediction without a class.

    The paper's figures guide three of the four latent channels. The other channels and the variance are those
    of the conditional prediction. y = None is not guided.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("scale",)
    uses_null: ClassVar[bool] = True

    scale: float = field(1.0, doc="1 is no guidance; larger follows the condition more closely")
    channels: int | None = field(None, ge=1, none="all", doc="number of guided channels, from the first")

    @property
    def idle(self) -> bool:
        return isinstance(self.scale, int | float) and self.scale == 1

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        if y is None:
            return guide(self.denoiser, x_t, t, None)
        conditional, null, plain = conditional_and_null(self.denoiser, x_t, t, y)
        return Guided(extrapolated(conditional, null, self.scale, self.channels), plain)
