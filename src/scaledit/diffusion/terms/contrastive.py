"""Contrastive flow matching (Stoica et al. 2025, arXiv:2506.05350).

    L = || out - target(x_0, eps) ||^2 - weight || out - target(x~_0, eps~) ||^2

The minimum is (E target - weight E target~) / (1 - weight): the prediction is moved away from the mean of all
samples, so that those of different conditions differ more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.diffusion.parameterization import Epsilon, LearnedRange
from scaledit.diffusion.terms.base import Seen, Term
from scaledit.errors import UsageError
from scaledit.lazy import Tensor
from scaledit.part import field


@dataclass(frozen=True)
class Contrastive(Term, name="contrastive"):
    """Minus the base objective's error on the target of another sample, its image and its noise. Without a
    bound of a variance. For predictions of the velocity or the image."""

    partner: ClassVar[bool] = True

    weight: float = field(0.05, ge=0, lt=1, doc="factor of the term in the loss; at 1 it has no minimum")

    def fits(self, config, schedule, parameterization):
        inside = parameterization.mean if isinstance(parameterization, LearnedRange) else parameterization
        if isinstance(inside, Epsilon):
            raise UsageError(
                "diffusion.terms: contrastive needs a target that holds the image, and the noise of another "
                "sample says nothing about it; set diffusion.prediction=velocity, or leave the term out"
            )

    def __call__(self, seen: Seen) -> Tensor:
        assert seen.partner is not None  # asked for
        x0, _, eps = seen.partner
        return -seen.objective.error(seen.denoiser, seen.out, x0, eps, seen.x_t, seen.t)
