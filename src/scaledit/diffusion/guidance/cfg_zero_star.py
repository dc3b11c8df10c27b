"""CFG-Zero* (Fan et al. 2025): classifier-free guidance for flows.

v = s v_null + scale (v_y - s v_null)            s = <v_y, v_null> / |v_null|^2, of each image
v = 0 in the first steps
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from scaledit.conditions import Condition
from scaledit.diffusion.guidance.base import (
    ROUNDING,
    Guidance,
    Guided,
    Target,
    conditional_and_null,
    guide,
    guide_where,
)
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import Schedule, broadcast_like
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class CFGZeroStar(Guidance, name="cfg_zero_star", title="CFG-Zero*"):
    """Classifier-free guidance with the null velocity scaled by its projection on the conditional one, and
    with zero velocity in the first steps (Fan et al. 2025, arXiv 2503.18886). For flows only.

    With s = 1 it is classifier-free guidance. The first steps are those that begin in the last `zero` of the
    time axis, next to noise: 4 % of the steps of an even grid, and at least one; they evaluate no network.
    y = None is not guided.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ("scale", "zero")
    uses_null: ClassVar[bool] = True

    scale: float = field(1.0, doc="1 is no guidance; larger follows the condition more closely")
    zero: float = field(0.04, ge=0, lt=1, doc="share of the time axis, next to noise, with zero velocity")
    channels: int | None = field(None, ge=1, none="all", doc="number of guided channels, from the first")

    @property
    def idle(self) -> bool:
        values = self.scale, self.zero
        return all(isinstance(value, int | float) for value in values) and values == (1, 0)

    @property
    def evaluations(self) -> int:
        return 1 if isinstance(self.scale, int | float) and self.scale == 1 else 2

    def obstacle(self, target: Target) -> str:
        if target.schedule.discrete:
            return (
                "it is defined for velocities of flows, and this model has a beta schedule "
                f"({target.schedule.part_name()}); use classifier_free"
            )
        if target.learns_variance:
            return "it is defined for velocities, and this model predicts a variance too; use classifier_free"
        return ""

    def moving(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Whether the velocity at each of the times t (n,) is not set to zero, (n,) bool on the CPU."""
        return schedule.fraction(t) - ROUNDING <= 1 - self.zero

    def spent(self, inside: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.where(self.moving(schedule, t), inside * self.evaluations, 0)

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        if y is None:
            return guide(self.denoiser, x_t, t, None)
        t = t.expand(len(x_t))
        moving = self.moving(self.schedule, t)
        if not bool(moving.all()):
            always = dataclasses.replace(self, zero=0.0)
            return guide_where(moving, always, _Still(self.schedule), x_t, t, y)
        if self.evaluations == 1:
            return guide(self.denoiser, x_t, t, y)
        conditional, null, plain = conditional_and_null(self.denoiser, x_t, t, y)
        return Guided(self._guided(conditional, null, x_t, t), plain)

    def _guided(self, conditional: Prediction, null: Prediction, x_t: Tensor, t: Tensor) -> Prediction:
        schedule, n = self.schedule, self.channels
        alpha, sigma = (broadcast_like(value, x_t) for value in schedule.coefficients(t))
        alpha_rate, sigma_rate = (broadcast_like(value, x_t) for value in schedule.rates(t))
        towards, away = ((alpha_rate * x0 + sigma_rate * eps)[:, :n] for x0, eps, _ in (conditional, null))
        square = away.square().flatten(1).sum(1)
        s = torch.where(square > 0, (towards * away).flatten(1).sum(1) / square, 0)
        away = broadcast_like(s, away) * away
        scale = broadcast_like(torch.as_tensor(self.scale), away)
        v = torch.where(scale == 1, towards, away + scale * (towards - away))
        x = x_t[:, :n]
        x0, eps = sigma_rate * x - sigma * v, alpha * v - alpha_rate * x
        if n is not None:
            x0 = torch.cat([x0, conditional.x0[:, n:]], dim=1)
            eps = torch.cat([eps, conditional.eps[:, n:]], dim=1)
        return Prediction(x0, eps)


@dataclass(frozen=True)
class _Still:
    """The denoiser of velocity zero: x0 = sigma' x_t and eps = -alpha' x_t, both x_t on a linear flow."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        alpha_rate, sigma_rate = (broadcast_like(value, x_t) for value in self.schedule.rates(t))
        return Prediction(sigma_rate * x_t, -alpha_rate * x_t)
