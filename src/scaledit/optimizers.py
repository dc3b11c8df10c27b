"""Optimizers: how the weights follow the gradient. [optimizer] of a recipe names one as `algorithm`, beside
the learning rate over a run and the clipping of gradients, which are the same for all.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
    theta <- (1 - lr decay) theta - lr m' / (sqrt(v') + 1e-8)       m', v' bias-corrected      AdamW

Loshchilov & Hutter 2019. Needs torch only to make an optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from scaledit.errors import UsageError
from scaledit.lazy import torch
from scaledit.part import Part, field


class Optimizer(Part, kind="optimizer", home="scaledit.optimizers", needs=("make",)):
    """An optimizer, made by torch or by the user.

    state: the kinds of tensors that it keeps for each parameter, by torch's names; a checkpoint stores them
    as "exp_avg/NAME". scalars: the kinds with shape (); all others have their parameter's shape and dtype.
    bytes_of_state: bytes of state per float32 weight.
    """

    state: ClassVar[tuple[str, ...]] = ("step",)
    scalars: ClassVar[tuple[str, ...]] = ("step",)
    bytes_of_state: ClassVar[int] = 0

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Makes torch's optimizer. groups: the trained parameters, {"params": [...]} each, as torch takes
        them. learning_rate: that of the first step; the run sets it before each later step."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdamW(Optimizer, name="adamw"):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    state = ("step", "exp_avg", "exp_avg_sq")
    bytes_of_state = 8

    betas: tuple[float, float] = field(
        (0.9, 0.999), doc="decay of the running means of the gradient and of its square"
    )
    weight_decay: float = field(0.0, ge=0, doc="decoupled, times the learning rate, at each step")

    def check(self, where: str = "") -> None:
        super().check(where)
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"{where}betas must be in [0, 1), got {list(self.betas)}")

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            groups, lr=learning_rate, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
