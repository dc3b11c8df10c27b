"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021).

    y = W x + b + (alpha / r) B A x        A (r, in): U(-1 / sqrt(in), 1 / sqrt(in)),  B (out, r): zero

W and b keep their names in the state dict; A and B are beside them, under the names that PEFT uses:

    blocks.0.attn.qkv.weight   .bias   .lora_A.weight   .lora_B.weight
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from scaledit.errors import UsageError


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank term. It has the parameters of `linear` itself, not copies."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = linear.in_features, linear.out_features, scale
        self.weight, self.bias = linear.weight, linear.bias
        kind = {"device": linear.weight.device, "dtype": linear.weight.dtype, "bias": False}
        # Like PEFT and the authors' code, A starts as torch initializes any linear layer: Kaiming-uniform.
        self.lora_A = nn.Linear(linear.in_features, rank, **kind)
        self.lora_B = nn.Linear(rank, linear.out_features, **kind)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias) + self.scale * self.lora_B(self.lora_A(input))


def attach(net: nn.Module, names: Iterable[str], rank: int, scale: float) -> None:
    """Gives the linear layers called `names` a low-rank term, in place, drawn from torch's global generator
    in the order of the names. Raises UsageError for a name that is no linear layer."""
    for name in names:
        linear = net.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise UsageError(f"lora.targets matches {name}, which is no linear layer; name others")
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, LoRALinear(linear, rank, scale))


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in the dtype of W (out, in), computed in float32. a: (r, in). b: (out, r)."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
