"""The Diffusion Transformer (Peebles & Xie 2022, section 3.2): a plain ViT over patches of a noisy image.

    DiT(x_t, t, c) = unpatchify(final(blocks(patchify(x_t) W + pos;  t, c)))

The network is a pure function of (x, t, c): it draws no random number and knows nothing of diffusion.
It is built from the layers of its `Description`, the list that also counts it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn

from scaledit.conditions import Condition
from scaledit.errors import UsageError
from scaledit.models.blocks import Block, Embedded
from scaledit.models.config import DiTConfig
from scaledit.models.description import Description, Layers
from scaledit.models.layers import Derived, TimestepEmbedder, patchify, unpatchify

STD = 0.02
"""Of the weights that start normally distributed."""


class Output(NamedTuple):
    """What a network returns where hidden states are asked for. out: (N, C or 2C, H, W). hidden: by the
    number of their block, the patches' tokens behind it, (N, T, D)."""

    out: Tensor
    hidden: dict[int, Tensor]


class BlockModule(nn.Module):
    """A block: the layers that its design names, used as the design says."""

    def __init__(self, design: Block, layers: Layers):
        super().__init__()
        self.design = design
        add(self, layers)

    def forward(self, x: Tensor, told: Embedded) -> Tensor:
        return self.design.forward(self, x, told)


class FinalModule(BlockModule):
    """The last layer, likewise."""

    def forward(self, x: Tensor, told: Embedded) -> Tensor:
        return self.design.final(self, x, told)


def add(module: nn.Module, layers: Layers) -> None:
    """Builds the layers, in order, as submodules. Raises UsageError for a name that a module cannot have."""
    for name, layer in layers.items():
        try:
            module.add_module(name, layer.build())
        except KeyError:
            raise UsageError(f"a layer cannot be called {name!r}; choose another name") from None


class DiT(Derived):
    """`DiT(config)(x, t, y)` -> (N, C or 2C, H, W).

    x: (N, C, H, W) float. t: (N,), in 0..1000; embedded in float64 where it is float64. y: a Condition of the
    kind that the config's conditioner embeds, (N,) int64 labels in 0..num_classes where that are labels
    (`num_classes` is the null label), or None for the null condition. second: (N,), a second time, where the
    config has one, and then always. hidden: numbers of blocks, from 0 on; where there are any, the call
    returns `Output(out, hidden)`.

    Raises UsageError for an input of another shape, another kind of condition, a second time that is missing
    or not taken, and a block that is not there.
    """

    patch_embed: nn.Linear
    time_embed: TimestepEmbedder
    second_time_embed: TimestepEmbedder
    """Where the config has a second time."""
    label_embed: nn.Embedding
    """Where the conditions are labels."""
    position: Tensor
    blocks: nn.ModuleList

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.design = config.block
        self.conditioner = config.conditioner_part
        described = Description.of(config)
        add(self, described.ends)
        # Frozen and a function of the config: not worth a place in a checkpoint.
        self.derive("position", partial(config.position_part.table, config), exact=False)
        self.blocks = nn.ModuleList(BlockModule(self.design, described.block) for _ in range(described.depth))
        self.final = FinalModule(self.design, described.final)
        initialize(self)

    @property
    def null_label(self) -> int:
        return self.config.num_classes

    def condition(
        self, y: Condition | Tensor | None, n: int | None = None, device: torch.device | None = None
    ) -> Condition:
        """What a caller asks for as a batch of conditions. y: a Condition, a tensor of labels where the model
        takes labels, or None for `n` (default 1) times the null condition. device: where it shall be.

        Raises UsageError for a condition of another kind.
        """
        condition = self.conditioner.condition(
            self.config, y, 1 if n is None else n, torch.device("cpu") if device is None else device
        )
        return condition if device is None else condition.to(device)

    def drop(self, condition: Condition, u: Tensor) -> Condition:
        """The null condition in the rows where u (N,), uniform in [0, 1), is below `class_dropout`.

        For training only (Ho & Salimans 2022); the caller owns the randomness.
        """
        return condition.where(u >= self.config.class_dropout, condition.null())

    def drop_labels(self, y: Tensor, u: Tensor) -> Tensor:
        """`drop` of labels y (N,) int64."""
        return torch.where(u.to(y.device) < self.config.class_dropout, self.null_label, y)

    @overload
    def forward(
        self, x: Tensor, t: Tensor, y: Condition | Tensor | None, second: Tensor | None = None
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Condition | Tensor | None,
        second: Tensor | None = None,
        *,
        hidden: Collection[int],
    ) -> Output: ...
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
                f"this DiT takes inputs of shape (N, {', '.join(map(str, config.shape))}), "
                f"got {tuple(x.shape)}"
            )
        self._check(second, hidden)
        condition = self.conditioner.condition(config, y, x.shape[0], x.device)
        time = self.time_embed(t)
        if second is not None:
            time = time + self.second_time_embed(second)
        told = Embedded(time, *self.conditioner.embed(self, condition))
        tokens = self.patch_embed(patchify(x, config.patch_size)) + self.position
        tokens = self.design.enter(tokens, told)
        kept: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, told)
            if i in hidden:
                kept[i] = self.design.leave(tokens, config.tokens)
        tokens = self.final(self.design.leave(tokens, config.tokens), told)
        out = unpatchify(tokens, config.patch_size, config.height, config.width)
        return Output(out, kept) if hidden else out

    def _check(self, second: Tensor | None, hidden: Collection[int]) -> None:
        if (second is not None) != self.config.second_time:
            raise UsageError(
                "this model takes two times; pass second=, (N,)"
                if second is None
                else "this model takes one time; make one with model.second_time=true"
            )
        absent = [i for i in hidden if not 0 <= i < self.config.depth]
        if absent:
            raise UsageError(f"there is no block {absent[0]}; this model has 0 to {self.config.depth - 1}")


def initialize(dit: DiT) -> None:
    """The paper's whole initialisation; draws from torch's global generator, so seed that first.

    1. Every Linear, the patch embedding among them: Xavier-uniform weight, zero bias.
    2. Label table and both linears of the timestep embedding: weight N(0, 0.02) (`Layer.NORMAL`).
    3. Zero, weight and bias: every block's modulation, the last layer's modulation, the last linear
       (`Layer.starts_at_zero`).
       So adaLN starts unmodulated, each adaLN-Zero block is the identity, and every model predicts zero.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    layers = dict(Description.of(dit.config).named())
    asked = dit.conditioner.layers(dit.config)  # the first to be drawn, so that old seeds give old weights
    for name, layer in {**asked, **layers}.items():
        for weight in layer.NORMAL:
            nn.init.normal_(dit.get_parameter(f"{name}.{weight}"), std=STD)
    for name, layer in layers.items():
        if layer.starts_at_zero:
            for weight in layer.weights():
                nn.init.zeros_(dit.get_parameter(f"{name}.{weight}"))
