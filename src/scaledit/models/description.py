"""A network as a list of layers, from which it is both built and counted. Imports no torch.

    {"norm1": LayerNorm(d, T), "attn": SelfAttention(d, heads, T), "mlp": MLP(d, m, T), ...}

    parameters, multiply-adds, activations kept for the backward pass  =  sums over the layers

Each layer knows how many tokens of one image go through it, and all counts are of one image. A multiply-add
counts as one, as in the paper's Gflops. Matrix products are counted (linears and attention); normalizations,
activation functions and look-ups are not.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from scaledit.lazy import Lazy, torch

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models import layers, variants
    from scaledit.models.config import DiTConfig
else:
    layers, variants = Lazy("scaledit.models.layers"), Lazy("scaledit.models.variants")

TIME_FREQUENCIES = 256
"""Length of the sinusoidal timestep embedding: half cosines, half sines."""
LAYER_NORM_EPS = 1e-6
NORM_NUMBERS = 2
"""A LayerNorm keeps the mean and the standard deviation of each token."""
NORMAL_STD = 0.02
"""Standard deviation of the weights in `Layer.NORMAL`, unless a layer has another one."""

Shapes = dict[str, tuple[int, ...]]


class Activations(NamedTuple):
    """Numbers that a forward pass keeps for the backward pass. wide: always in float32. narrow: factors and
    results of matrix products, in bfloat16 under autocast."""

    wide: int = 0
    narrow: int = 0

    def plus(self, other: Activations, times: int = 1) -> Activations:
        return Activations(self.wide + other.wide * times, self.narrow + other.narrow * times)


class Layer(abc.ABC):
    """One layer: its weights, its cost, and how to build it. Subclasses are frozen dataclasses.

    NORMAL: names of weights that are initialized to N(0, std^2); those of other linears are Xavier-uniform,
    and the rest as their module makes them. starts_at_zero: whether all weights are initialized to zero.
    """

    NORMAL: ClassVar[tuple[str, ...]] = ()
    std: float = NORMAL_STD
    starts_at_zero: bool = False

    @abc.abstractmethod
    def weights(self) -> Shapes:
        """{name: shape} of the trainable parameters of the module that `build` makes."""

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The module, with torch's own initialization."""

    def matrices(self) -> dict[str, int]:
        """{name: n} of the weights (outputs, inputs) that multiply vectors; n: how many matrices of equal
        shape, with results of their own, lie under each other in it."""
        return {name: 1 for name, shape in self.weights().items() if len(shape) == 2}

    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return 0

    def activations(self) -> Activations:
        """What autograd saves: the inputs that it needs, and intermediate results."""
        return Activations()

    def live(self) -> int:
        """Lower bound of the numbers that a forward pass without gradients holds at once: the input and what
        is computed from it."""
        return 0

    def in_first_block(self) -> Layer:
        """The layer as the first block has it, if that differs from all others."""
        return self

    @property
    def params(self) -> int:
        return sum(math.prod(shape) for shape in self.weights().values())

    def cast_params(self) -> int:
        """Parameters of which autocast keeps a copy: the factors of matrix products."""
        return self.params


Layers = Mapping[str, Layer]
"""{name of the submodule: layer}, in the order in which they are built."""


def linear_shapes(name: str, out: int, inputs: int) -> Shapes:
    """A linear layer with a bias. name: what its names begin with, such as "fc1."."""
    return {f"{name}weight": (out, inputs), f"{name}bias": (out,)}


@dataclass(frozen=True)
class Linear(Layer):
    """rows: tokens of an image, 1 for a vector."""

    inputs: int
    outputs: int
    rows: int
    starts_at_zero: bool = False

    def weights(self) -> Shapes:
        return linear_shapes("", self.outputs, self.inputs)

    def macs(self) -> int:
        return self.rows * self.inputs * self.outputs

    def activations(self) -> Activations:
        return Activations(narrow=self.rows * self.inputs)

    def live(self) -> int:
        return self.rows * (self.inputs + self.outputs)

    def build(self) -> nn.Module:
        return torch.nn.Linear(self.inputs, self.outputs)


@dataclass(frozen=True)
class Modulation(Layer):
    """Linear from silu(t + c) to `vectors` vectors; starts at zero (paper, section 3.2). Its activations
    depend on how the vectors are used, so the block design counts them (`Block.activations`)."""

    width: int
    vectors: int
    starts_at_zero = True

    def weights(self) -> Shapes:
        return linear_shapes("", self.vectors * self.width, self.width)

    def matrices(self) -> dict[str, int]:
        return {"weight": self.vectors}

    def macs(self) -> int:
        return self.vectors * self.width**2

    def build(self) -> nn.Module:
        return torch.nn.Linear(self.width, self.vectors * self.width)


@dataclass(frozen=True)
class LayerNorm(Layer):
    """rows: tokens of an image. affine: whether it has a scale and a shift per channel."""

    width: int
    rows: int
    affine: bool = True

    def weights(self) -> Shapes:
        return {"weight": (self.width,), "bias": (self.width,)} if self.affine else {}

    def activations(self) -> Activations:
        return Activations(wide=self.rows * (self.width + NORM_NUMBERS))

    def live(self) -> int:
        return 2 * self.rows * self.width

    def build(self) -> nn.Module:
        return torch.nn.LayerNorm(self.width, eps=LAYER_NORM_EPS, elementwise_affine=self.affine)


@dataclass(frozen=True)
class SelfAttention(Layer):
    """rows: tokens of an image. qk_norm: whether queries and keys are normalized per head (model.qk_norm).
    mixes_values: whether the values are mixed with those of the first block (model.value_residual), which
    alone does not mix. Fused attention keeps one number per token and head, and no T x T matrix."""

    width: int
    heads: int
    rows: int
    qk_norm: bool = False
    mixes_values: bool = False

    def in_first_block(self) -> SelfAttention:
        return replace(self, mixes_values=False)

    def weights(self) -> Shapes:
        return {
            **({"mix": (1,)} if self.mixes_values else {}),
            **linear_shapes("qkv.", 3 * self.width, self.width),
            **linear_shapes("proj.", self.width, self.width),
            **(_qk_norms(self.width // self.heads) if self.qk_norm else {}),
        }

    def matrices(self) -> dict[str, int]:
        return {"qkv.weight": 3, "proj.weight": 1}

    def macs(self) -> int:
        return 4 * self.rows * self.width**2 + 2 * self.rows**2 * self.width

    def activations(self) -> Activations:
        """x; q, k, v; the result. The mixed values are one more."""
        kept = Activations(wide=self.rows * self.heads, narrow=self.live())
        kept = kept.plus(Activations(narrow=self.rows * self.width), self.mixes_values)
        return kept.plus(_normalized(self.rows, self.rows, self.width, self.heads), self.qk_norm)

    def live(self) -> int:
        """x; q, k, v; the result."""
        return 5 * self.rows * self.width

    def build(self) -> nn.Module:
        return layers.SelfAttention(self.width, self.heads, self.qk_norm, self.mixes_values)


@dataclass(frozen=True)
class CrossAttention(Layer):
    """rows: tokens of an image. context: tokens that they attend to, of the same width. qk_norm: as in
    `SelfAttention`."""

    width: int
    heads: int
    rows: int
    context: int
    qk_norm: bool = False

    def weights(self) -> Shapes:
        d = self.width
        norms = _qk_norms(d // self.heads) if self.qk_norm else {}
        return {
            **linear_shapes("q.", d, d),
            **linear_shapes("kv.", 2 * d, d),
            **linear_shapes("proj.", d, d),
            **norms,
        }

    def matrices(self) -> dict[str, int]:
        return {"q.weight": 1, "kv.weight": 2, "proj.weight": 1}

    def macs(self) -> int:
        products = 2 * (self.rows + self.context) * self.width**2
        return products + 2 * self.rows * self.context * self.width

    def activations(self) -> Activations:
        kept = Activations(wide=self.rows * self.heads, narrow=self.live())
        return kept.plus(_normalized(self.rows, self.context, self.width, self.heads), self.qk_norm)

    def live(self) -> int:
        """x, q, the result; the context, its k and v."""
        return 3 * (self.rows + self.context) * self.width

    def build(self) -> nn.Module:
        return layers.CrossAttention(self.width, self.heads, self.qk_norm)


def _qk_norms(head: int) -> Shapes:
    return {"q_norm.weight": (head,), "k_norm.weight": (head,)}


def _normalized(queries: int, keys: int, width: int, heads: int) -> Activations:
    """What norms of queries and keys keep: the factor of the scale, in float32, and rms; their results; and
    the result of the attention a second time, as its layout is another one."""
    rows = queries + keys
    return Activations(wide=rows * (width + heads), narrow=(rows + queries) * width)


@dataclass(frozen=True)
class MLP(Layer):
    """Linear, GELU, Linear. rows: tokens of an image."""

    width: int
    hidden: int
    rows: int

    def weights(self) -> Shapes:
        return {
            **linear_shapes("fc1.", self.hidden, self.width),
            **linear_shapes("fc2.", self.width, self.hidden),
        }

    def macs(self) -> int:
        return 2 * self.rows * self.width * self.hidden

    def activations(self) -> Activations:
        return Activations(narrow=self.live())

    def live(self) -> int:
        """x; the hidden layer before and after its activation function."""
        return self.rows * (self.width + 2 * self.hidden)

    def build(self) -> nn.Module:
        return layers.MLP(self.width, self.hidden)


@dataclass(frozen=True)
class TimestepEmbedder(Layer):
    """Sinusoid of TIME_FREQUENCIES numbers, Linear, SiLU, Linear; once per image."""

    NORMAL: ClassVar[tuple[str, ...]] = ("fc1.weight", "fc2.weight")

    width: int

    def weights(self) -> Shapes:
        return {
            **linear_shapes("fc1.", self.width, TIME_FREQUENCIES),
            **linear_shapes("fc2.", self.width, self.width),
        }

    def macs(self) -> int:
        return (TIME_FREQUENCIES + self.width) * self.width

    def activations(self) -> Activations:
        return Activations(narrow=TIME_FREQUENCIES + 2 * self.width)

    def build(self) -> nn.Module:
        return layers.TimestepEmbedder(self.width)


@dataclass(frozen=True)
class Embedding(Layer):
    """A look-up table: no product, so no matrix, and autocast keeps no copy."""

    NORMAL: ClassVar[tuple[str, ...]] = ("weight",)

    entries: int
    width: int

    def weights(self) -> Shapes:
        return {"weight": (self.entries, self.width)}

    def matrices(self) -> dict[str, int]:
        return {}

    def cast_params(self) -> int:
        return 0

    def build(self) -> nn.Module:
        return torch.nn.Embedding(self.entries, self.width)


@dataclass(frozen=True)
class Tokens(Embedding):
    """Learned vectors, called without an argument: (entries, width). std: of their initialization."""

    std: float = NORMAL_STD

    def build(self) -> nn.Module:
        return variants.Learned(self.entries, self.width)


@dataclass(frozen=True)
class Vector(Layer):
    """A learned vector, called without an argument: (width,). It starts at zero."""

    width: int
    starts_at_zero = True

    def weights(self) -> Shapes:
        return {"weight": (self.width,)}

    def cast_params(self) -> int:
        return 0

    def build(self) -> nn.Module:
        return variants.Learned(self.width)


class Description(NamedTuple):
    """All layers of `DiT(config)`. ends: submodules of the network itself, before the blocks. first: of the
    first block, block: of each of the `depth` - 1 others. final: after the blocks. early: the second final
    layer (model.early_output), or nothing; it is counted although only some calls use it. between: what the
    forward passes of all blocks and the final layers keep besides their layers."""

    ends: Layers
    first: Layers
    block: Layers
    final: Layers
    early: Layers
    depth: int
    between: Activations

    @classmethod
    def of(cls, config: DiTConfig) -> Description:
        d, design = config.hidden_size, config.block
        time = config.time_embedding_part.layer(config)
        ends: dict[str, Layer] = {
            "patch_embed": config.patch_embed_part.layer(config),
            "time_embed": time,
            **({"second_time_embed": time} if config.second_time else {}),
            **config.conditioner_part.layers(config),
            **config.position_part.layers(config),
            **design.shared_layers(config),
            **({"registers": Tokens(config.registers, d)} if config.registers else {}),
        }
        block, final = design.layers(config), design.final_layers(config)
        first = {name: layer.in_first_block() for name, layer in block.items()}
        early = final if config.early_output else {}
        between = design.shared_activations(config).plus(design.activations(config), config.depth)
        between = between.plus(design.final_activations(config), 2 if early else 1)
        between = between.plus(config.position_part.activations(config), config.depth)
        return cls(ends, first, block, final, early, config.depth, between)

    def multiplicities(self) -> Iterator[tuple[Layer, int]]:
        """Each distinct layer, and how often it occurs."""
        yield from ((layer, 1) for layer in self.ends.values())
        yield from ((layer, 1) for layer in self.first.values())
        yield from ((layer, self.depth - 1) for layer in self.block.values())
        yield from ((layer, 1) for layer in self.final.values())
        yield from ((layer, 1) for layer in self.early.values())

    def blocks(self) -> Iterator[Layers]:
        """The layers of each block, in order."""
        yield self.first
        yield from (self.block for _ in range(self.depth - 1))

    def named(self) -> Iterator[tuple[str, Layer]]:
        """Each layer with the name of its submodule ("blocks.0.attn"), in the order of the state dict."""
        yield from self.ends.items()
        for i, block in enumerate(self.blocks()):
            yield from ((f"blocks.{i}.{name}", layer) for name, layer in block.items())
        yield from ((f"final.{name}", layer) for name, layer in self.final.items())
        yield from ((f"early_final.{name}", layer) for name, layer in self.early.items())

    def shapes(self) -> Shapes:
        """{name: shape} of the state dict, in its order."""
        return {
            f"{name}.{weight}": shape
            for name, layer in self.named()
            for weight, shape in layer.weights().items()
        }

    @property
    def params(self) -> int:
        return sum(layer.params * times for layer, times in self.multiplicities())

    @property
    def cast_params(self) -> int:
        """Parameters of which autocast keeps a copy."""
        return sum(layer.cast_params() * times for layer, times in self.multiplicities())

    @property
    def macs(self) -> int:
        return sum(layer.macs() * times for layer, times in self.multiplicities())

    def activations(self) -> Activations:
        """Numbers that the forward pass of one image keeps for the backward pass."""
        total = self.between
        for layer, times in self.multiplicities():
            total = total.plus(layer.activations(), times)
        return total
