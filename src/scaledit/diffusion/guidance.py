"""Guidance: Denoiser -> Denoiser. Knows no sampler and no network.

eps(x_t, y) <- eps(x_t, null) + scale (eps(x_t, y) - eps(x_t, null))     (Ho & Salimans 2022, eq. 6;
                                                                          scale = 1 is no guidance)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from scaledit.diffusion.denoiser import Denoiser, NetDenoiser
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import Schedule
from scaledit.errors import UsageError
from scaledit.part import Part, field

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


@dataclass(frozen=True)
class Guidance(Part, kind="guidance", home="scaledit.diffusion.guidance", needs=("__call__",)):
    """A denoiser around another one. inside: that one; None in a recipe, until `bind`."""

    uses_null: ClassVar[bool] = False
    """Whether it leads away from the null label, which must have been trained."""

    inside: Denoiser | None = field(None, inner=True)

    def bind(self, denoiser: Denoiser) -> Self:
        """The same around `denoiser`."""
        return dataclasses.replace(self, inside=denoiser)

    @property
    def schedule(self) -> Schedule:
        return self._inside.schedule

    @property
    def _inside(self) -> Denoiser:
        if self.inside is None:
            raise UsageError(f"{self.part_name()} is around no denoiser: bind it to one")
        return self.inside

    @property
    def is_active(self) -> bool:
        """Whether it changes anything."""
        return True

    @property
    def evaluations(self) -> int:
        """Of the denoiser inside, for each of its own."""
        return 2 if self.is_active else 1

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        raise NotImplementedError


@dataclass(frozen=True)
class ClassifierFree(Guidance, name="classifier_free"):
    """Classifier-free guidance on the first `channels` channels, or on all (None).

    The paper's figures guide three of the four latent channels. The other channels and the variance are
    the conditional half's. Without a label there is nothing to guide towards: y = None passes through.
    """

    uses_null = True

    scale: float = field(1.0, doc="1 is no guidance")
    channels: int | None = field(None, ge=1, none="all", doc="the first ones that are guided")

    @property
    def is_active(self) -> bool:
        return self.scale != 1

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        inside = self._inside
        if y is None:
            return inside(x_t, t, None)
        if isinstance(inside, NetDenoiser):
            conditional, null = inside.conditional_and_null(x_t, t, y)
        else:
            conditional, null = inside(x_t, t, y), inside(x_t, t, None)

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


def guided(inside: Denoiser, parts: Iterable[Guidance]) -> Denoiser:
    """`inside` in all the parts that change anything, the first of them innermost."""
    for part in parts:
        if part.is_active:
            inside = part.bind(inside)
    return inside
