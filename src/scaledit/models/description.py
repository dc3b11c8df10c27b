"""A network as a list of layers: what it is built from, and what it is counted by. Imports no torch.

    {"norm1": LayerNorm(d, T), "attn": SelfAttention(d, heads, T), "mlp": MLP(d, m, T), ...}

    parameters, multiply-adds, numbers kept for the backward pass  =  sums over the layers

Each layer knows how many tokens of one image go through it. A multiply-add is counted as one, for one
forward pass at batch 1, as the paper's Gflops are. Matrix products are counted (linears and attention);
normalisations, activations and look-ups are not. All numbers below are of one image.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models.config import DiTConfig

TIME_FREQUENCIES = 256
"""Length of the sinusoidal timestep embedding: half cosines, half sines."""
NORM_NUMBERS = 2
"""A LayerNorm keeps the mean and the deviation of each token."""

Shapes = dict[str, tuple[int, ...]]


class Kept(NamedTuple):
    """How many numbers a forward pass keeps for its backward pass. wide: in float32 in any case. narrow:
    factors and results of matrix products, in bfloat16 under autocast."""

    wide: int = 0
    narrow: int = 0

    def plus(self, other: Kept, times: int = 1) -> Kept:
        return Kept(self.wide + other.wide * times, self.narrow + other.narrow * times)


class Layer(abc.ABC):
    """One layer: its weights, its cost, and how to build it. Subclasses are frozen dataclasses.

    NORMAL: which of its weights start as N(0, 0.02); those of linears start Xavier-uniform, the others as
    their module makes them. starts_at_zero: whether all its weights start at zero.
    """

    NORMAL: ClassVar[tuple[str, ...]] = ()

    @property
    def starts_at_zero(self) -> bool:
        return False

    @abc.abstractmethod
    def weights(self) -> Shapes:
        """{name: shape} of the trainable parameters of the module that `build` makes."""

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The module, in torch's own initialisation."""

    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return 0

    def kept(self) -> Kept:
        """What autograd saves: its inputs where they are needed, and what lies between."""
        return Kept()

    def live(self) -> int:
        """Numbers that a forward pass without gradients holds at once, at the least: the input and what is
        made of it."""
        return 0

    @property
    def params(self) -> int:
        return sum(math.prod(shape) for shape in self.weights().values())

    def multiplied(self) -> int:
        """Parameters that are factors of a product, of which autocast keeps a copy."""
        return self.params


Layers = Mapping[str, Layer]
"""{name of the submodule: layer}, in the order in which they are built."""


def _linear(name: str, out: int, inputs: int) -> Shapes:
    return {f"{name}weight": (out, inputs), f"{name}bias": (out,)}


@dataclass(frozen=True)
class Linear(Layer):
    """rows: tokens of an image that go through it, 1 for a vector. zero: weight and bias start at zero."""

    inputs: int
    outputs: int
    rows: int
    zero: bool = False

    @property
    def starts_at_zero(self) -> bool:
        return self.zero

    def weights(self) -> Shapes:
        return _linear("", self.outputs, self.inputs)

    def macs(self) -> int:
        return self.rows * self.inputs * self.outputs

    def kept(self) -> Kept:
        return Kept(narrow=self.rows * self.inputs)

    def live(self) -> int:
        return self.rows * (self.inputs + self.outputs)

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Linear(self.inputs, self.outputs)


@dataclass(frozen=True)
class Modulation(Layer):
    """Linear from silu(t + c) to so many vectors of the width; starts at zero (paper, section 3.2). What is
    kept of it depends on how its vectors are used, so that the design counts it (`Block.kept`)."""

    width: int
    vectors: int

    @property
    def starts_at_zero(self) -> bool:
        return True

    def weights(self) -> Shapes:
        return _linear("", self.vectors * self.width, self.width)

    def macs(self) -> int:
        return self.vectors * self.width**2

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Linear(self.width, self.vectors * self.width)


@dataclass(frozen=True)
class LayerNorm(Layer):
    """rows: tokens of an image. affine: with a scale and a shift for each channel."""

    width: int
    rows: int
    affine: bool = True

    def weights(self) -> Shapes:
        return {"weight": (self.width,), "bias": (self.width,)} if self.affine else {}

    def kept(self) -> Kept:
        return Kept(wide=self.rows * (self.width + NORM_NUMBERS))

    def live(self) -> int:
        return 2 * self.rows * self.width

    def build(self) -> nn.Module:
        from scaledit.models.layers import layer_norm

        return layer_norm(self.width, affine=self.affine)


@dataclass(frozen=True)
class SelfAttention(Layer):
    """rows: tokens of an image. The fused attention keeps one number for each token and head, and no T x T
    matrix."""

    width: int
    heads: int
    rows: int

    def weights(self) -> Shapes:
        return {**_linear("qkv.", 3 * self.width, self.width), **_linear("proj.", self.width, self.width)}

    def macs(self) -> int:
        return 4 * self.rows * self.width**2 + 2 * self.rows**2 * self.width

    def kept(self) -> Kept:
        """x; q, k, v; the result."""
        return Kept(wide=self.rows * self.heads, narrow=5 * self.rows * self.width)

    def live(self) -> int:
        return 5 * self.rows * self.width

    def build(self) -> nn.Module:
        from scaledit.models import layers

        return layers.SelfAttention(self.width, self.heads)


@dataclass(frozen=True)
class CrossAttention(Layer):
    """rows: tokens of an image; context: tokens that they attend to, of the same width."""

    width: int
    heads: int
    rows: int
    context: int

    def weights(self) -> Shapes:
        d = self.width
        return {**_linear("q.", d, d), **_linear("kv.", 2 * d, d), **_linear("proj.", d, d)}

    def macs(self) -> int:
        products = 2 * (self.rows + self.context) * self.width**2
        return products + 2 * self.rows * self.context * self.width

    def kept(self) -> Kept:
        """x, q, the result; the context, its k and v."""
        narrow = 3 * (self.rows + self.context) * self.width
        return Kept(wide=self.rows * self.heads, narrow=narrow)

    def live(self) -> int:
        return 3 * (self.rows + self.context) * self.width

    def build(self) -> nn.Module:
        from scaledit.models import layers

        return layers.CrossAttention(self.width, self.heads)


@dataclass(frozen=True)
class MLP(Layer):
    """Linear, GELU, Linear. rows: tokens of an image."""

    width: int
    hidden: int
    rows: int

    def weights(self) -> Shapes:
        return {**_linear("fc1.", self.hidden, self.width), **_linear("fc2.", self.width, self.hidden)}

    def macs(self) -> int:
        return 2 * self.rows * self.width * self.hidden

    def kept(self) -> Kept:
        """x; the hidden layer before and after its activation."""
        return Kept(narrow=self.rows * (self.width + 2 * self.hidden))

    def live(self) -> int:
        return self.rows * (self.width + 2 * self.hidden)

    def build(self) -> nn.Module:
        from scaledit.models import layers

        return layers.MLP(self.width, self.hidden)


@dataclass(frozen=True)
class TimestepEmbedder(Layer):
    """Sinusoid of TIME_FREQUENCIES numbers, Linear, SiLU, Linear; once an image."""

    NORMAL: ClassVar[tuple[str, ...]] = ("fc1.weight", "fc2.weight")

    width: int

    def weights(self) -> Shapes:
        return {**_linear("fc1.", self.width, TIME_FREQUENCIES), **_linear("fc2.", self.width, self.width)}

    def macs(self) -> int:
        return (TIME_FREQUENCIES + self.width) * self.width

    def kept(self) -> Kept:
        return Kept(narrow=TIME_FREQUENCIES + 2 * self.width)

    def build(self) -> nn.Module:
        from scaledit.models import layers

        return layers.TimestepEmbedder(self.width)


@dataclass(frozen=True)
class Embedding(Layer):
    """A table that is looked up: no product, and so never cast."""

    NORMAL: ClassVar[tuple[str, ...]] = ("weight",)

    entries: int
    width: int

    def weights(self) -> Shapes:
        return {"weight": (self.entries, self.width)}

    def multiplied(self) -> int:
        return 0

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Embedding(self.entries, self.width)


class Description(NamedTuple):
    """All layers of `DiT(config)`. ends: before the blocks, submodules of the network itself. block: of each
    of `depth` blocks. final: behind them. kept: what the designs' own forward passes keep beside their
    layers, of all blocks and the end."""

    ends: Layers
    block: Layers
    final: Layers
    depth: int
    between: Kept

    @classmethod
    def of(cls, config: DiTConfig) -> Description:
        d, block = config.hidden_size, config.block
        area = config.in_channels * config.patch_size**2
        ends: dict[str, Layer] = {
            "patch_embed": Linear(area, d, config.tokens),
            "time_embed": TimestepEmbedder(d),
            **({"second_time_embed": TimestepEmbedder(d)} if config.second_time else {}),
            **config.conditioner_part.layers(config),
            **config.position_part.layers(config),
        }
        between = Kept().plus(block.kept(config), config.depth).plus(block.final_kept(config))
        return cls(ends, block.layers(config), block.final_layers(config), config.depth, between)

    def once(self) -> Iterator[tuple[Layer, int]]:
        """Each layer, and how often there is one like it."""
        yield from ((layer, 1) for layer in self.ends.values())
        yield from ((layer, self.depth) for layer in self.block.values())
        yield from ((layer, 1) for layer in self.final.values())

    def named(self) -> Iterator[tuple[str, Layer]]:
        """Each layer by the name of its submodule, as in "blocks.0.attn", in the order of the state dict."""
        yield from self.ends.items()
        for i in range(self.depth):
            yield from ((f"blocks.{i}.{name}", layer) for name, layer in self.block.items())
        yield from ((f"final.{name}", layer) for name, layer in self.final.items())

    def shapes(self) -> Shapes:
        """{name: shape} of the state dict, in its order."""
        return {
            f"{name}.{weight}": shape
            for name, layer in self.named()
            for weight, shape in layer.weights().items()
        }

    @property
    def params(self) -> int:
        return sum(layer.params * times for layer, times in self.once())

    @property
    def multiplied(self) -> int:
        """Parameters of which autocast keeps a copy."""
        return sum(layer.multiplied() * times for layer, times in self.once())

    @property
    def macs(self) -> int:
        return sum(layer.macs() * times for layer, times in self.once())

    def kept(self) -> Kept:
        """Numbers that the forward pass of one image keeps for its backward pass."""
        total = self.between
        for layer, times in self.once():
            total = total.plus(layer.kept(), times)
        return total
