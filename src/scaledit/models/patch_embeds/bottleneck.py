"""The bottleneck patch embedding (Li & He 2025, "Back to basics"): for large patches of pixels.

token = (x A) W + b,   A (p p C, width),  W (width, D)

A product of two matrices, with no activation function in between: the tokens of noisy pixels lie in a space
of few dimensions, as images do. The first linear has no bias, since it would be a part of b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.errors import UsageError
from scaledit.lazy import Lazy
from scaledit.models.description import Activations, Layer, Shapes, linear_shapes
from scaledit.models.patch_embeds import PatchEmbed
from scaledit.part import field

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models import variants
    from scaledit.models.config import DiTConfig
else:
    variants = Lazy("scaledit.models.variants")


@dataclass(frozen=True)
class BottleneckLayer(Layer):
    """Two linears. rows: tokens of an image."""

    inputs: int
    width: int
    outputs: int
    rows: int

    def weights(self) -> Shapes:
        first = {"reduce.weight": (self.width, self.inputs)}
        return {**first, **linear_shapes("expand.", self.outputs, self.width)}

    def macs(self) -> int:
        return self.rows * self.width * (self.inputs + self.outputs)

    def activations(self) -> Activations:
        return Activations(narrow=self.rows * (self.inputs + self.width))

    def live(self) -> int:
        return self.rows * (self.inputs + self.width + self.outputs)

    def build(self) -> nn.Module:
        return variants.Bottleneck(self.inputs, self.width, self.outputs)


@dataclass(frozen=True)
class Bottleneck(PatchEmbed, name="bottleneck"):
    """Two linear layers with few channels in between, for large patches of pixels (Li & He 2025)."""

    width: int = field(128, ge=1, doc="channels between the two layers")

    def layer(self, config: DiTConfig) -> BottleneckLayer:
        return BottleneckLayer(config.patch_numbers, self.width, config.hidden_size, config.tokens)

    def fits(self, config: DiTConfig) -> None:
        widest = min(config.patch_numbers, config.hidden_size)
        if self.width >= widest:
            raise UsageError(
                f"model.patch_embed.width {self.width} is no bottleneck between the {config.patch_numbers} "
                f"numbers of a patch and model.hidden_size {config.hidden_size}; choose less than {widest}, "
                'or model.patch_embed="linear"'
            )
