"""The loss of an early head, for internal guidance (arXiv:2512.24176).

L_early = L_base(output of the final layer after model.early_output blocks)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.diffusion.terms.base import Seen, Term
from scaledit.errors import UsageError
from scaledit.lazy import Tensor
from scaledit.part import field


@dataclass(frozen=True)
class Early(Term, name="early"):
    """The base objective's loss of the early head's output, which internal guidance extrapolates away from.
    Needs model.early_output."""

    early: ClassVar[bool] = True

    weight: float = field(1.0, gt=0, doc="factor of the term in the loss")

    def fits(self, config, schedule, parameterization):
        if not config.early_output:
            raise UsageError(
                "diffusion.terms: early needs a second final layer; set model.early_output to the number of "
                f"blocks before it, such as {max(1, config.depth // 3)}, or leave the term out"
            )

    def __call__(self, seen: Seen) -> Tensor:
        assert seen.early is not None  # asked for
        args = seen.denoiser, seen.early, seen.x0, seen.eps, seen.x_t, seen.t
        return seen.objective.losses(*args).total
