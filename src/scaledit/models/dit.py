"""The Diffusion Transformer (Peebles & Xie 2022, section 3.2): a plain ViT over patches of a noisy image.

    DiT(x_t, t, y) = unpatchify(final(blocks(patchify(x_t) W + pos;  t, y)))

The network is a pure function of (x, t, y): it draws no random number and knows nothing of diffusion.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from scaledit.errors import UsageError
from scaledit.models.blocks import FAMILIES, Condition
from scaledit.models.config import DiTConfig
from scaledit.models.layers import Derived, TimestepEmbedder, patchify, position_table, unpatchify


class DiT(Derived):
    """`DiT(config)(x, t, y)`: x (N, C, H, W) float, t (N,) in 0..1000, y (N,) int64 in 0..num_classes
    -> (N, C or 2C, H, W). `num_classes` is the null label."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.family = FAMILIES[config.conditioning]
        patch_area = config.patch_size**2
        self.patch_embed = nn.Linear(config.in_channels * patch_area, config.hidden_size)
        self.time_embed = TimestepEmbedder(config.hidden_size)
        self.label_embed = nn.Embedding(config.num_classes + 1, config.hidden_size)
        rows, columns = config.height // config.patch_size, config.width // config.patch_size
        # Frozen and a function of the config: not worth a place in a checkpoint.
        self.derive("position", partial(position_table, config.hidden_size, rows, columns), exact=False)
        self.position: Tensor
        self.blocks = nn.ModuleList(
            self.family.block(config.hidden_size, config.num_heads, config.mlp_ratio)
            for _ in range(config.depth)
        )
        self.final = self.family.final(config.hidden_size, config.out_channels * patch_area)
        initialize(self)

    @property
    def null_label(self) -> int:
        return self.config.num_classes

    def drop_labels(self, y: Tensor, u: Tensor) -> Tensor:
        """y (N,) with the null label where u (N,), uniform in [0, 1), is below `class_dropout`.

        For training only (Ho & Salimans 2022); the caller owns the randomness.
        """
        return torch.where(u.to(y.device) < self.config.class_dropout, self.null_label, y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        config = self.config
        if x.shape[1:] != config.shape:
            raise UsageError(
                f"this DiT takes inputs of shape (N, {', '.join(map(str, config.shape))}), "
                f"got {tuple(x.shape)}"
            )
        condition = Condition(self.time_embed(t), self.label_embed(y))
        tokens = self.patch_embed(patchify(x, config.patch_size)) + self.position
        tokens = self.family.enter(tokens, condition)
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.final(self.family.leave(tokens), condition)
        return unpatchify(tokens, config.patch_size, config.height, config.width)


def initialize(dit: DiT) -> None:
    """The paper's whole initialisation; draws from torch's global generator, so seed that first.

    1. Every Linear, the patch embedding among them: Xavier-uniform weight, zero bias.
    2. Label table and both linears of the timestep embedding: weight N(0, 0.02).
    3. Zero, weight and bias: every block's modulation, the last layer's modulation, the last linear.
       So adaLN starts unmodulated, each adaLN-Zero block is the identity, and every model predicts zero.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for weight in (dit.label_embed.weight, dit.time_embed.fc1.weight, dit.time_embed.fc2.weight):
        nn.init.normal_(weight, std=0.02)
    for name, parameter in dit.named_parameters():
        if ".modulation." in name or name.startswith("final.linear."):
            nn.init.zeros_(parameter)
