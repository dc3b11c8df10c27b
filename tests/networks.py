"""Networks away from their initialization, and the switches that are not the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scaledit import DiT, DiTConfig
from scaledit.config import override

EVERY_SWITCH: Mapping[str, Any] = {
    "norm": "rms",
    "mlp": "swiglu",
    "qk_norm": True,
    "value_residual": True,
    "patch_embed": {"name": "bottleneck", "width": 5},
    "registers": 2,
    "time_embedding": "fourier",
}
"""Fields of a DiTConfig."""


def overrides(switches: Mapping[str, Any]) -> tuple[str, ...]:
    """The same as words of a command."""
    return tuple(override(f"model.{key}", value) for key, value in switches.items())


def trained(config: DiTConfig) -> DiT:
    """Weights away from the zeros of the initialization, as after training."""
    torch.manual_seed(0)
    net = DiT(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return net.eval()
