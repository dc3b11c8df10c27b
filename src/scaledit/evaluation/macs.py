"""Multiply-adds of a network that scaledit does not describe, counted by running it without numbers.

macs.of(network, torch.empty(1, 3, 224, 224, device="meta"))            weights on the meta device too
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def of(network: Callable[[Tensor], Any], x: Tensor) -> int:
    """Multiply-adds of matrix products, convolutions and attention of `network(x)`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2
