"""The exponential moving average (EMA) of the weights, which samples are generated with.

    ema <- beta_n ema + (1 - beta_n) weights,   beta_n = decay,  or min(decay, (1 + n) / (10 + n)) with warmup

The paper's decay is a constant 0.9999 without bias correction: after 2,000 steps 82 % of the average is still
the initialization. With warmup it averages over about the last tenth of any run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaledit.config import EMAConfig


def decay_at(config: EMAConfig, step: int) -> float:
    """beta_n of the update after optimizer step n = `step` (0 for the first)."""
    return min(config.decay, (1 + step) / (10 + step)) if config.warmup else config.decay


@torch.no_grad()
def update(ema: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Updates `ema` in place; the lists hold the same parameters in the same order."""
    torch._foreach_lerp_(ema, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
