"""Internal guidance: away from the early head of the same network.

out = early + scale (full - early)           early: predicted after about a third of the blocks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.guidance.base import Guidance, Guided, Target, extrapolated
from scaledit.errors import UsageError
from scaledit.lazy import Tensor
from scaledit.part import field


@dataclass(frozen=True)
class Internal(Guidance, name="internal"):
    """Guides away from the early head of the network (internal guidance, arXiv 2512.24176), in one pass: it
    costs no evaluation. The model must have been trained with model.early_output. Combine it with an
    interval, of middle to high noise in the paper, and with classifier_free after it.

    The variance is that of the full network.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("scale",)

    scale: float = field(1.5, doc="1 is no guidance; larger moves further from the early head")
    channels: int | None = field(None, ge=1, none="all", doc="number of guided channels, from the first")

    @property
    def idle(self) -> bool:
        return isinstance(self.scale, int | float) and self.scale == 1

    @property
    def evaluations(self) -> int:
        return 1

    def obstacle(self, target: Target) -> str:
        if target.guided:
            return "it guides the network itself, so it must be the first part of the list"
        if target.early == 0:
            return (
                "this model has no early head; train one with model.early_output, the number of blocks "
                "before it, or use classifier_free"
            )
        return ""

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        denoiser = self.denoiser
        if not isinstance(denoiser, NetDenoiser):
            raise UsageError("internal guidance needs a network with an early head, not another denoiser")
        out = denoiser.output(x_t, t, y, early=True)
        full, early = denoiser.decode(out.out, x_t, t), denoiser.decode(out.early, x_t, t)
        return Guided(extrapolated(full, early, self.scale, self.channels), lambda: full)
