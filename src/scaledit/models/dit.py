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
from scaledit.models.layers import Derived, SelfAttention, patchify, unpatchify
from scaledit.models.variants import Learned

MOST_TABLES = 64
"""Position tables of other grids that a network keeps."""


class Output(NamedTuple):
    """A network's output with hidden states. out: (N, C or 2C, H, W). hidden: {index of a block: the patches'
    tokens after it, (N, T, D)}."""

    out: Tensor
    hidden: dict[int, Tensor]


class EarlyOutput(NamedTuple):
    """`Output` with that of the early head, shaped as out."""

    out: Tensor
    hidden: dict[int, Tensor]
    early: Tensor


class BlockModule(nn.Module):
    """A block: the layers of its design, and the design's forward pass. With a value residual, the first one
    is a `FirstBlock`."""

    def __init__(self, design: Block, layers: Layers):
        super().__init__()
        self.design = design
        add_layers(self, layers)

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:
        return self.design.forward(self, x, embedded)


class FirstBlock(BlockModule):
    """The first block of a network with model.value_residual: returns its tokens and the values of its
    attention, (N, heads, T, head), which are an input of all other blocks."""

    def forward(self, x: Tensor, embedded: Embedded) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept: list[Tensor] = []
        places = embedded.places._replace(kept=kept)
        x = self.design.forward(self, x, embedded._replace(places=places))
        if len(kept) != 1:
            raise UsageError(
                f"model.value_residual needs the values of the block design {self.design.part_name()}, which "
                "does not pass embedded.places to its attention; call m.attn(x, embedded.places)"
            )
        return x, kept[0]


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

    x: (N, C, H, W) float, of the config's size, or of another one if the position encoding is defined there.
    t: (N,), in 0..1000; embedded in float64 if it is float64. y: a Condition of the kind that the config's
    conditioner embeds, (N,) int64 labels in 0..num_classes if that kind is labels (`num_classes` is the null
    label), or None for the null condition. second: (N,), a second time, required if the config has one.
    hidden: indices of blocks, from 0. early: whether the early head predicts too (model.early_output). With
    the former, `Output` is returned, with the latter `EarlyOutput`.

    Raises UsageError if x has a wrong shape, the condition is of another kind, a second time is missing or
    not taken, or a block or the early head does not exist.
    """

    patch_embed: nn.Module
    time_embed: nn.Module
    second_time_embed: nn.Module
    """Only if the config has a second time."""
    registers: Learned
    """Only if the config has registers."""
    label_embed: nn.Embedding
    """Only if the conditions are labels."""
    position: Tensor
    blocks: nn.ModuleList

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.design = config.block
        self.conditioner = config.conditioner_part
        self.encoding = config.position_part
        described = Description.of(config)
        self._tables: dict[tuple[int, int], Tensor | None] = {}
        add_layers(self, described.ends)
        self.derive("position", partial(_position_table, config), exact=False)
        kinds = [FirstBlock if config.value_residual else BlockModule] + [BlockModule] * (config.depth - 1)
        self.blocks = nn.ModuleList(
            kind(self.design, layers) for kind, layers in zip(kinds, described.blocks(), strict=True)
        )
        for module in self.blocks.modules():
            if isinstance(module, SelfAttention):
                module.needs_places = self.encoding.in_attention
        self.final = FinalModule(self.design, described.final)
        if described.early:
            self.early_final = FinalModule(self.design, described.early)
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
        early: bool = False,
    ) -> Tensor | Output | EarlyOutput:
        config = self.config
        grid = self._grid(x)
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
        if early and not config.early_output:
            raise UsageError(
                "this model has no early head; train one with model.early_output, the number of blocks "
                "before it"
            )
        condition = self.conditioner.condition(config, y, x.shape[0], x.device)
        time = self.time_embed(t)
        if second is not None:
            time = time + self.second_time_embed(second)
        tokens = self.patch_embed(patchify(x, config.patch_size))
        table = self._table(grid, tokens)
        # The sum of all blocks is kept in the weights' dtype, also under autocast.
        tokens = tokens.to(self.position.dtype) if table is None else tokens + table
        places = self.encoding.places(self, config, grid, tokens)
        embedded = Embedded(time, *self.conditioner.embed(self, condition), places=places)
        embedded = self.design.prepare(self, embedded)
        patches, (height, width) = grid[0] * grid[1], x.shape[2:]
        if config.registers:
            registers = self.registers().to(tokens.dtype).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens, registers], dim=1)
        tokens = self.design.enter(tokens, embedded)
        states: dict[int, Tensor] = {}
        early_out = None
        for i, block in enumerate(self.blocks):
            if config.value_residual and i == 0:
                tokens, values = block(tokens, embedded)
                embedded = embedded._replace(places=places._replace(values=values))
            else:
                tokens = block(tokens, embedded)
            if any(i == wanted for wanted in hidden):  # a compiled call gets "i in hidden" wrong
                states[i] = self._patches(tokens, patches)
            if early and i + 1 == config.early_output:
                head = self.early_final(self._patches(tokens, patches), embedded)
                early_out = unpatchify(head, config.patch_size, height, width)
        tokens = self.final(self._patches(tokens, patches), embedded)
        out = unpatchify(tokens, config.patch_size, height, width)
        if early_out is not None:
            return EarlyOutput(out, states, early_out)
        return Output(out, states) if hidden else out

    def _patches(self, tokens: Tensor, patches: int) -> Tensor:
        """The tokens of the patches, given all tokens after a block."""
        registers = self.config.registers
        tokens = self.design.leave(tokens, patches + registers)
        return tokens[:, :patches] if registers else tokens

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of x. Raises UsageError if it has no such shape."""
        config = self.config
        p = config.patch_size
        if x.shape[1:] == config.shape:
            return config.grid
        if (
            x.ndim != 4
            or x.shape[1] != config.in_channels
            or x.shape[2] % p
            or x.shape[3] % p
            or not x.numel()
        ):
            raise UsageError(
                f"this DiT accepts inputs of shape (N, {', '.join(map(str, config.shape))}), or of another "
                f"height and width that its patch size {p} divides; got {tuple(x.shape)}"
            )
        return x.shape[2] // p, x.shape[3] // p

    def _table(self, grid: tuple[int, int], like: Tensor) -> Tensor | None:
        """The position table of a grid, on the device of `like`; None if the encoding adds nothing."""
        if grid == self.config.grid:
            return self.position if self.position.numel() else None
        if grid not in self._tables:
            table = self.encoding.table_at(self.config, grid)
            if len(self._tables) >= MOST_TABLES:
                self._tables.clear()
            self._tables[grid] = table
        table = self._tables[grid]
        return None if table is None else table.to(like.device, self.position.dtype)


def _position_table(config: DiTConfig) -> Tensor:
    """The table on the config's grid; empty if the encoding adds nothing to the tokens."""
    table = config.position_part.table(config)
    return torch.empty(0) if table is None else table


def initialize(dit: DiT) -> None:
    """The paper's initialization, drawn from torch's global generator, which the caller seeds.

    1. Every Linear, including the patch embedding: Xavier-uniform weight, zero bias.
    2. Label table and both linears of the timestep embedding: weight N(0, 0.02) (`Layer.NORMAL`).
    3. Modulations of the blocks and of the final layer, and the final linear: all zero
       (`Layer.starts_at_zero`). Thus adaLN starts unmodulated, each adaLN-Zero block is the identity, and
       every model predicts zero.

    Of the parts that are not the paper's:

    1. Linears that hold several matrices (qkv; W1 and W3 of SwiGLU) are one matrix here.
    2. The table of times and the registers are N(0, 0.02), and context tokens are N(0, 1 / D) (`Layer.std`).
    3. The shared modulation of adaLN-single and the vectors of its blocks are zero.
    4. Scales of norms are one, also those of queries and keys; the l of a value residual is 0.5. No random
       numbers are drawn for them.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    layers = dict(Description.of(dit.config).named())
    first = dit.conditioner.layers(dit.config)  # drawn first, so that a seed gives the weights it always gave
    for name, layer in {**first, **layers}.items():
        for weight in layer.NORMAL:
            nn.init.normal_(dit.get_parameter(f"{name}.{weight}"), std=layer.std)
    for name, layer in layers.items():
        if layer.starts_at_zero:
            for weight in layer.weights():
                nn.init.zeros_(dit.get_parameter(f"{name}.{weight}"))
