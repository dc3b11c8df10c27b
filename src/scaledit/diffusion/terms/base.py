"""What terms of a loss share: the base class, and what a term sees of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.objectives import Objective
from scaledit.diffusion.objectives.base import check_draws
from scaledit.diffusion.parameterization import Parameterization
from scaledit.diffusion.schedule import Schedule
from scaledit.lazy import Tensor, torch
from scaledit.part import Part, field


class Partner(NamedTuple):
    """Another training sample for each of N: x0 (N, C, H, W), its label y (N,) int64, its noise eps (N, C, H,
    W). The partner of the sample at position p of the training stream is the one at position p XOR 1."""

    x0: Tensor
    y: Tensor
    eps: Tensor


class Seen(NamedTuple):
    """What a term sees of N samples.

    objective: the base objective. denoiser: the network in training, with its schedule and parameterization.
    x0, y, t, eps: as in `Objective.__call__`. x_t: the noisy images that the network saw, (N, C, H, W). out:
    its output there. hidden: {index of a block: (N, T, D)}, those that the term asked for. early: the early
    head's output, shaped as out, if the term asked for it. images: the clean images in [-1, 1], (N, 1 or 3,
    H, W), if the term asked for them. partner: if the term asked for it. draws, average: as in `Context`.
    modules, frozen: what the term's methods of these names built; None if they built nothing.
    """

    objective: Objective
    denoiser: NetDenoiser
    x0: Tensor
    y: Any
    t: Tensor
    eps: Tensor
    x_t: Tensor
    out: Tensor
    hidden: Mapping[int, Tensor]
    early: Tensor | None = None
    images: Tensor | None = None
    partner: Partner | None = None
    draws: Mapping[str, Tensor] = {}
    modules: Any = None
    frozen: Any = None
    average: NetDenoiser | None = None


@dataclass(frozen=True)
class Term(Part, kind="loss term", home="scaledit.diffusion.terms", needs=("__call__",)):
    """A part of the loss beside the base objective: total = base + sum over terms of weight * term.

    Class attributes, or properties that depend on fields, declare what it needs. All terms read the first
    evaluation of the network by the base objective, so none of them costs a forward pass of its own.

    hidden: indices of blocks whose tokens it reads. early: whether it reads the early head's output, which
    needs model.early_output; such a term is active in all steps. images: whether it needs the clean images in
    pixels. partner: whether it needs another training sample for each one. draws: as in `Objective`; two
    terms may use the same names.
    """

    hidden: ClassVar[Sequence[int]] = ()
    early: ClassVar[bool] = False
    images: ClassVar[bool] = False
    partner: ClassVar[bool] = False
    draws: ClassVar[Mapping[str, str]] = {}

    weight: float = field(1.0, doc="factor of the term in the loss")

    def __call__(self, seen: Seen) -> Tensor:
        """The term of each sample, (N,), before its weight."""
        raise NotImplementedError

    def modules(self, config: Any) -> torch.nn.Module | None:
        """The term's own modules, trained beside the network; as `Objective.modules`."""
        return None

    def frozen(self, config: Any, device: torch.device) -> Any:
        """What the term reads and nothing trains, such as a teacher: built when training starts, in no
        checkpoint; None for nothing. config: the DiTConfig. Raises UsageError if something is missing."""
        return None

    def fits(self, config: Any, schedule: Schedule, parameterization: Parameterization) -> None:
        """Raises UsageError if the term makes no sense for a model (config: its DiTConfig), on this schedule
        or for what the network predicts."""

    def ready(self) -> None:
        """Raises UsageError if a file that the term reads is missing; called before a run begins."""

    def active(self, step: int) -> bool:
        """Whether the term is part of the loss at this step, counted from 0. Afterwards it costs nothing."""
        return True

    def extra_macs(self, config: Any) -> int:
        """Multiply-adds of one training step per image that the term adds to those of the network, forward
        and backward together: a frozen network costs its forward pass, a trained module three. config: the
        DiTConfig."""
        return 0

    @property
    def logged_name(self) -> str:
        """The term's name in the log."""
        return type(self).NAME or type(self).__name__

    def check(self, where: str = "") -> None:
        super().check(where)
        check_draws(self.part_name(), self.draws)
