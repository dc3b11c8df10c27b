"""The Diffusion Transformer (Peebles & Xie 2022, section 3.2): a plain ViT over patches of a noisy image.

    DiT(x_t, t, c) = unpatchify(final(blocks(patchify(x_t) W + pos;  t, c)))

The network is a pure function of (x, t, c): it draws no random numbers and is independent of diffusion. It is
built from the layers of its `Description`, which also counts it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaledit.conditions import Condition
from scaledit.errors import UsageError
from scaledit.models.blocks import Block, Embedded
from scaledit.models.config import DiTConfig
from scaledit.models.description import Description, Layers
from scaledit.models.layers import Derived, TimestepEmbedder, patchify, unpatchify

NORMAL_STD = 0.02
"""Standard deviation of the weights listed in `Layer.NORMAL`."""


class Output(NamedTuple):
    """A network's output with hidden states. out: (N, C or 2C, H, W). hidden: {index of a block: the patches'
    tokens after it, (N, T, D)}."""

    out: Tensor
    hidden: dict[int, Tensor]


class BlockModule(nn.Module):
    """A block: the layers of its design, and the design's forward pass."""

    def __init__(self, design: Block, layers: Layers):
        super().__init__()
        self.design = design
        add_layers(self, layers)

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:
        return self.design.forward(self, x, embedded)


class FinalModule(BlockModule):
    """The final layer, likewise."""

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:
        return self.design.final(self, x, embedded)


def add_layers(module: nn.Module, layers: Layers) -> None:
    """Builds the layers, in order, as submodules. Raises UsageError if a name is not allowed for a
    submodule."""
    for name, layer in layers.items():
        try:
            module.add_module(name, layer.build())
        except KeyError:
            raise UsageError(f"a layer cannot be called {name!r}; choose another name") from None


class DiT(Derived):
    """`DiT(config)(x, t, y)` -> (N, C or 2C, H, W).

    x: (N, C, H, W) float. t: (N,), in 0..1000; embedded in float64 if it is float64. y: a Condition of the
    kind that the config's conditioner embeds, (N,) int64 labels in 0..num_classes if that kind is labels
    (`num_classes` is the null label), or None for the null condition. second: (N,), a second time, required
    if the config has one. hidden: indices of blocks, from 0; if there are any, `Output(out, hidden)` is
    returned.

    Raises UsageError if x has another shape, the condition is of another kind, a second time is missing or
    not taken, or a block does not exist.
    """

    patch_embed: nn.Linear
    time_embed: TimestepEmbedder
    second_time_embed: TimestepEmbedder
    """Only if the config has a second time."""
    label_embed: nn.Embedding
    """Only if the conditions are labels."""
    position: Tensor
    blocks: nn.ModuleList

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.design = config.block
        self.conditioner = config.conditioner_part
        described = Description.of(config)
        add_layers(self, described.ends)
        self.derive("position", partial(config.position_part.table, config), exact=False)
        self.blocks = nn.ModuleList(BlockModule(self.design, described.block) for _ in range(described.depth))
        self.final = FinalModule(self.design, described.final)
        initialize(self)

    @property
    def null_label(self) -> int:
        return self.config.num_classes

    def condition(
        self, y: Condition | Tensor | None, n: int = 1, device: torch.device | None = None
    ) -> Condition:
        """`y` as a batch of conditions. y: a Condition, a tensor of labels if the model takes labels, or None
        for n rows of the null condition. device: to which the batch is moved. Raises UsageError if y is of
        another kind."""
        condition = self.conditioner.condition(self.config, y, n, device or torch.device("cpu"))
        return condition if device is None else condition.to(device)

    def drop(self, condition: Condition, u: Tensor) -> Condition:
        """`condition` with the null condition in the rows where u (N,), uniform on [0, 1), is below
        `class_dropout`; for training (Ho & Salimans 2022)."""
        return condition.where(u >= self.config.class_dropout, condition.null())

    def drop_labels(self, y: Tensor, u: Tensor) -> Tensor:
        """`drop` for labels y (N,) int64."""
        return torch.where(u.to(y.device) < self.config.class_dropout, self.null_label, y)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Condition | Tensor | None,
        second: Tensor | None = None,
        hidden: Collection[int] = (),
    ) -> Tensor | Output:
        config = self.config
        if x.shape[1:] != config.shape:
            raise UsageError(
                f"this DiT accepts inputs of shape (N, {', '.join(map(str, config.shape))}), "
                f"got {tuple(x.shape)}"
            )
        if (second is not None) != config.second_time:
            raise UsageError(
                "this model needs two times; pass second=, (N,)"
                if second is None
                else "this model accepts one time only; create it with model.second_time=true to "
                "pass a second one"
            )
        for i in hidden:
            if not 0 <= i < config.depth:
                raise UsageError(f"there is no block {i}; this model has blocks 0 to {config.depth - 1}")
        condition = self.conditioner.condition(config, y, x.shape[0], x.device)
        time = self.time_embed(t)
        if second is not None:
            time = time + self.second_time_embed(second)
        embedded = Embedded(time, *self.conditioner.embed(self, condition))
        tokens = self.patch_embed(patchify(x, config.patch_size)) + self.position
        tokens = self.design.enter(tokens, embedded)
        states: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, embedded)
            if i in hidden:
                states[i] = self.design.leave(tokens, config.tokens)
        tokens = self.final(self.design.leave(tokens, config.tokens), embedded)
        out = unpatchify(tokens, config.patch_size, config.height, config.width)
        return Output(out, states) if hidden else out


def initialize(dit: DiT) -> None:
    """The paper's initialization, drawn from torch's global generator, which the caller seeds.

    1. Every Linear, including the patch embedding: Xavier-uniform weight, zero bias.
    2. Label table and both linears of the timestep embedding: weight N(0, 0.02) (`Layer.NORMAL`).
    3. Modulations of the blocks and of the final layer, and the final linear: all zero
       (`Layer.starts_at_zero`). Thus adaLN starts unmodulated, each adaLN-Zero block is the identity, and
       every model predicts zero.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    layers = dict(Description.of(dit.config).named())
    first = dit.conditioner.layers(dit.config)  # drawn first, so that a seed gives the weights it always gave
    for name, layer in {**first, **layers}.items():
        for weight in layer.NORMAL:
            nn.init.normal_(dit.get_parameter(f"{name}.{weight}"), std=NORMAL_STD)
    for name, layer in layers.items():
        if layer.starts_at_zero:
            for weight in layer.weights():
                nn.init.zeros_(dit.get_parameter(f"{name}.{weight}"))
