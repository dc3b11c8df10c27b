"""Autoguidance (Karras et al. 2024): away from a weaker model instead of the null label.

D(x_t, y) <- D_weaker(x_t, y) + scale (D(x_t, y) - D_weaker(x_t, y))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser
from scaledit.diffusion.guidance.base import Guidance, Guided, Opened, extrapolated, guide
from scaledit.errors import UsageError
from scaledit.lazy import Tensor
from scaledit.part import field


@dataclass(frozen=True)
class Autoguidance(Guidance, name="autoguidance"):
    """Guides away from a smaller model, or from one trained for less time (Karras et al. 2024, arXiv
    2406.02507), which needs no null label. A fraction of the model's steps is a good start.

    The weaker model has the same schedule, prediction, image shape and classes. Its weights are recorded by
    their hash. With classifier_free before it in the list, both are combined: the class by that, the quality
    by this.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("scale",)

    model: str = field("", path=True, doc="the weaker model: a run, RUN@STEP or an exported folder")
    scale: float = field(2.0, doc="1 is no guidance; larger moves further from the weaker model")
    channels: int | None = field(None, ge=1, none="all", doc="number of guided channels, from the first")
    null: bool = field(False, doc="whether the weaker model gets the null label instead of the class")
    sha256: str = field("", doc="SHA-256 of the weaker model's weights; empty: whatever the model is")
    weaker: Denoiser | None = field(None, inner=True)

    @property
    def idle(self) -> bool:
        return isinstance(self.scale, int | float) and self.scale == 1

    def opened(self, open_model: Callable[[str], Opened]) -> Self:
        """Raises UsageError if no model is named, or not the one with the hash."""
        if self.idle or self.weaker is not None:
            return self
        if not self.model:
            raise UsageError("autoguidance.model is empty; name the weaker model: a run folder, or RUN@STEP")
        weaker, sha256, has_null = open_model(self.model)
        if self.null and not has_null:
            raise UsageError(
                f"autoguidance.null is true, but {self.model} was trained with model.class_dropout=0, so it "
                "never saw the null label; leave autoguidance.null out"
            )
        if self.sha256 not in ("", sha256):
            raise UsageError(
                f"autoguidance.model {self.model} has the SHA-256 {sha256}, not {self.sha256}; restore that "
                "model, or leave autoguidance.sha256 out"
            )
        return dataclasses.replace(self, weaker=weaker, sha256=sha256)

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        """Raises UsageError if the weaker model is not open."""
        if self.weaker is None:
            raise UsageError("the weaker model of autoguidance is not open; pass it as `weaker`")
        towards, plain = guide(self.denoiser, x_t, t, y)
        away = self.weaker(x_t, t, None if self.null else y)
        return Guided(extrapolated(towards, away, self.scale, self.channels), plain)

    def spent(self, inside, schedule, t):
        return inside + 1
