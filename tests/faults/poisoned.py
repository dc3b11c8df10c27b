"""`scaledit` with a real fault: in step 12 of rank 1 the gradient of one weight is not a number."""

from __future__ import annotations

import os
import sys

import torch

from scaledit import cli
from scaledit.training.state import TrainState

create = TrainState.create.__func__


def with_a_fault(cls: type, *arguments: object) -> TrainState:
    state = create(cls, *arguments)
    if os.environ["RANK"] == "1":
        weight = state.net.blocks[0].mlp.fc1.weight
        weight.register_hook(lambda grad: torch.full_like(grad, float("nan")) if state.step == 11 else grad)
    return state


TrainState.create = classmethod(with_a_fault)
sys.exit(cli.main())
