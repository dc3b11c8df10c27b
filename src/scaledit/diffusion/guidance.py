"""Guidance: Denoiser -> Denoiser, independent of samplers and networks.

eps(x_t, y) <- eps(x_t, null) + scale (eps(x_t, y) - eps(x_t, null))     (Ho & Salimans 2022, eq. 6;
                                                                          scale = 1 is no guidance)

A guidance part has a field for the denoiser that it wraps, which recipes cannot set: `part.bind(denoiser)`
fills it, and `guided(denoiser, parts)` nests a list of parts, the first innermost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser, NetDenoiser
from scaledit.diffusion.parameterization import Prediction
from scaledit.diffusion.schedule import Schedule, broadcast_like
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import Part, field


@dataclass(frozen=True)
class Guidance(Part, kind="guidance", home="scaledit.diffusion.guidance", needs=("__call__",)):
    """A denoiser that wraps another one, `self.denoiser`.

    BY_ROW: names of fields that may be a float64 tensor (N,), one value per row, so that images with
    different values can be sampled in one batch. uses_null: whether it needs predictions for the null label,
    which must then have been trained.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ()
    uses_null: ClassVar[bool] = False

    inside: Denoiser | None = field(None, doc="the denoiser that is guided", inner=True)

    @property
    def denoiser(self) -> Denoiser:
        """The wrapped denoiser. Raises UsageError if none was bound."""
        if self.inside is None:
            raise UsageError(
                f"{self.part_name()} has no denoiser to guide yet; bind one with .bind(denoiser)"
            )
        return self.inside

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, so that it can be skipped."""
        return False

    @property
    def evaluations(self) -> int:
        """Evaluations of the wrapped denoiser per evaluation of this one."""
        return 1 if self.idle else 2

    def bind(self, denoiser: Denoiser) -> Self:
        """The same guidance around `denoiser`."""
        return dataclasses.replace(self, inside=denoiser)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        raise NotImplementedError


def guided(denoiser: Denoiser, parts: Sequence[Guidance]) -> Denoiser:
    """`denoiser` wrapped in all parts, the first innermost; idle parts are skipped."""
    for part in parts:
        if not part.idle:
            denoiser = part.bind(denoiser)
    return denoiser


def merge(guidances: Sequence[tuple[Guidance, ...]], sizes: Sequence[int]) -> tuple[Guidance, ...]:
    """One tuple of parts for a batch of jobs, of sizes[k] rows each, whose parts differ only in BY_ROW
    fields: those that differ become tensors with one value per row."""
    merged = []
    for parts in zip(*guidances, strict=True):
        by_row = {name: [getattr(part, name) for part in parts] for name in parts[0].BY_ROW}
        rows = {
            name: torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
            for name, values in by_row.items()
            if len(set(values)) > 1
        }
        merged.append(dataclasses.replace(parts[0], **rows) if rows else parts[0])
    return tuple(merged)


@dataclass(frozen=True)
class ClassifierFree(Guidance, name="classifier_free"):
    """Classifier-free guidance on all channels, or on the first `channels` of them.

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

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        denoiser = self.denoiser
        if y is None:
            return denoiser(x_t, t, None)
        if isinstance(denoiser, NetDenoiser):
            conditional, null = denoiser.conditional_and_null(x_t, t, y)
        else:
            conditional, null = denoiser(x_t, t, y), denoiser(x_t, t, None)

        def guide(towards: Tensor, away: Tensor) -> Tensor:
            if isinstance(self.scale, torch.Tensor):
                scale = broadcast_like(self.scale, towards)
                # Bit-identical to sampling the row alone, where a scale of 1 is skipped.
                guided = torch.where(scale == 1, towards, away + scale * (towards - away))
            else:
                guided = away + self.scale * (towards - away)
            if self.channels is None:
                return guided
            return torch.cat([guided[:, : self.channels], towards[:, self.channels :]], dim=1)

        # x0 and eps are affine in each other at a given x_t, so guiding both keeps them consistent.
        x0, eps = guide(conditional.x0, null.x0), guide(conditional.eps, null.eps)
        return Prediction(x0, eps, conditional.log_variance)
