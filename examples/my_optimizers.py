"""An optimizer of your own: signSGD with momentum (Bernstein et al. 2018).

m <- beta m + (1 - beta) g      theta <- theta - lr sign(m)

scaledit train digits optimizer.algorithm=my_optimizers:SignMomentum optimizer.learning_rate=3e-4
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scaledit.optimizers import Optimizer
from scaledit.part import field


class Signs(torch.optim.Optimizer):
    def __init__(self, groups, lr: float, beta: float):
        super().__init__(groups, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["beta"])
                weight.sub_(group["lr"] * momentum.sign())


@dataclass(frozen=True)
class SignMomentum(Optimizer):
    """Steps along the sign of a running mean of the gradients (Bernstein et al. 2018)."""

    state = ("momentum",)

    beta: float = field(0.9, ge=0, lt=1, doc="decay of the running mean")

    def make(self, groups, learning_rate: float):
        return Signs(groups, learning_rate, self.beta)
