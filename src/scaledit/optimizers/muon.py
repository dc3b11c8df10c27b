"""Muon for the matrices of the blocks, AdamW for all other weights (Jordan et al. 2024; Liu et al. 2025).

M <- b M + (1 - b) G        N = (1 - b) G + b M                           Nesterov momentum
O = NewtonSchulz(N)         close to U V^T, where N = U S V^T             5 steps
W <- (1 - lr decay) W - lr 0.2 sqrt(max(rows, columns)) O                 Liu et al. 2025, eq. 4

The entries of U V^T have the root mean square 1 / sqrt(max(rows, columns)), so those of an update have 0.2
times the rate: about AdamW's, which is why one rate serves both.

Matrices are the 2-D weights of the blocks that multiply vectors: of attention, the MLP and the modulation.
A weight that makes several vectors at once is updated as several matrices, W_q, W_k and W_v for instance:
together, the directions of the largest gradient among them would set the scale of all. The embeddings, the
final layer, biases, norms, LoRA's factors and the modules of an objective follow AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scaledit.errors import UsageError
from scaledit.lazy import torch
from scaledit.optimizers.adamw import check_betas
from scaledit.optimizers.base import MATRICES, Optimizer, with_decay
from scaledit.part import field


@dataclass(frozen=True)
class Muon(Optimizer, name="muon"):
    """Orthogonal updates for the matrices of the blocks (attention, MLP, modulation), AdamW for the rest
    (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982, eq. 4)."""

    state = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    bytes_of_state = 8
    splits_matrices = True
    bytes_of_matrices = 4

    momentum: float = field(0.95, ge=0, lt=1, doc="decay of the running mean of a matrix's gradient")
    iterations: int = field(5, ge=1, le=99, doc="Newton-Schulz steps of an update")
    precision: Literal["auto", "fp32", "bf16"] = field(
        "auto", doc="precision of the Newton-Schulz steps; auto: bf16 on CUDA, fp32 elsewhere"
    )
    betas: tuple[float, float] = field((0.9, 0.999), doc="of AdamW, which updates the other weights")
    weight_decay: float = field(0.0, ge=0, doc="decoupled, times the learning rate, of all weights")

    def check(self, where: str = "") -> None:
        super().check(where)
        check_betas(self.betas, where)

    def width_scale(self, ratio: float, matrices: int) -> float:
        """The largest singular value of a matrix's update is 0.2 sqrt(max(rows, columns)) times the rate, and
        should not depend on the width (Yang, Simon & Bernstein 2023, condition 1): 1 / sqrt(ratio)."""
        return ratio**-0.5 if matrices else super().width_scale(ratio, matrices)

    def matrix_macs(self, rows: int, columns: int) -> int:
        """X X^T, A A and A X per step, with A on the smaller side."""
        small, large = min(rows, columns), max(rows, columns)
        return self.iterations * small**2 * (2 * large + small)

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Raises UsageError if no group has "matrices"."""
        if not any(isinstance(group, dict) and group.get(MATRICES) for group in groups):
            raise UsageError(
                'muon has no matrix to update: no group of parameters has "matrices"; use adamw, or pass '
                "groups as scaledit.training.learner.make_optimizer does"
            )
        from scaledit.optimizers.updates.muon import MuonAndAdamW

        return MuonAndAdamW(
            with_decay(groups, self.weight_decay),
            lr=learning_rate,
            momentum=self.momentum,
            iterations=self.iterations,
            precision=self.precision,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )
