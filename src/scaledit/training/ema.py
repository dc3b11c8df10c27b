"""The exponential moving average of the weights, which is what samples are drawn with.

    ema <- beta_n ema + (1 - beta_n) weights,   beta_n = decay,  or min(decay, (1 + n) / (10 + n)) warmed up

The paper's is constant, 0.9999 from step 0 without correction: after 2,000 steps 82 % of it is still the
initialisation. The warmed-up one averages over about the last tenth of any run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaledit.config import EMAConfig


def decay_at(config: EMAConfig, step: int) -> float:
    """beta of the update after optimizer step `step` (0 for the first)."""
    return min(config.decay, (1 + step) / (10 + step)) if config.warmup else config.decay


@torch.no_grad()
def update(ema: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """In place, parameter by parameter."""
    torch._foreach_lerp_(ema, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
