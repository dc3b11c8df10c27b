"""Names and shapes of a DiT's weights in closed form, to check a state dict without building a network.

attn.qkv (3D, D)   attn.proj (D, D)   mlp.fc1 (H, D)   mlp.fc2 (D, H)   modulation (6D or 4D, D)
"""

from __future__ import annotations

from scaledit.models.config import DiTConfig
from scaledit.models.description import Description, Shapes

__all__ = ["LORA_A", "LORA_B", "Shapes", "shapes"]

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
"""What follows the name of a linear layer in the names of its low-rank factors (scaledit.models.lora)."""


def shapes(config: DiTConfig) -> Shapes:
    """{name: shape} of `DiT(config).state_dict()`, in its order."""
    return Description.of(config).shapes()
