"""AdamW (Loshchilov & Hutter 2019, algorithm 2).

m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
theta <- (1 - lr decay) theta - lr m' / (sqrt(v') + 1e-8)       m', v' bias-corrected
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scaledit.errors import UsageError
from scaledit.lazy import torch
from scaledit.optimizers.base import Optimizer, with_decay
from scaledit.part import field


def check_betas(betas: tuple[float, float], where: str) -> None:
    """Raises UsageError if a decay is not in [0, 1)."""
    if any(not 0 <= beta < 1 for beta in betas):
        raise UsageError(f"{where}betas must be in [0, 1), got {list(betas)}")


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
        check_betas(self.betas, where)

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            with_decay(groups, self.weight_decay),
            lr=learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )
