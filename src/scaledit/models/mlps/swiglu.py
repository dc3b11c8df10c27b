"""SwiGLU (Shazeer 2020, eq. 6): a hidden layer that is gated by another one.

MLP x = (silu(x W1 + b1) * (x W3 + b3)) W2 + b2,   hidden width  h = 2/3 r D,   r = model.mlp_ratio

It has three matrices of D h weights, as many as the paper's MLP has in two of D r D. h is rounded to the
nearest multiple of `multiple`, or to a whole number if that would be 0. The biases, which Shazeer leaves out,
are there as in all linears of a DiT. W1 and W3 are one linear layer, `fc1`; W2 is `fc2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.lazy import Lazy
from scaledit.models.description import Activations, Layer, Shapes, linear_shapes
from scaledit.models.mlps import MLP
from scaledit.part import field

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models import variants
else:
    variants = Lazy("scaledit.models.variants")


@dataclass(frozen=True)
class SwiGLULayer(Layer):
    """Two linears side by side, the gate, a linear. rows: tokens of an image."""

    width: int
    hidden: int
    rows: int

    def weights(self) -> Shapes:
        return {
            **linear_shapes("fc1.", 2 * self.hidden, self.width),
            **linear_shapes("fc2.", self.width, self.hidden),
        }

    def matrices(self) -> dict[str, int]:
        return {"fc1.weight": 2, "fc2.weight": 1}

    def macs(self) -> int:
        return 3 * self.rows * self.width * self.hidden

    def activations(self) -> Activations:
        return Activations(narrow=self.live())

    def live(self) -> int:
        """x; both halves of the hidden layer, silu of the first, the product."""
        return self.rows * (self.width + 4 * self.hidden)

    def build(self) -> nn.Module:
        return variants.SwiGLU(self.width, self.hidden)


@dataclass(frozen=True)
class SwiGLU(MLP, name="swiglu"):
    """A hidden layer gated by silu of another one, with about as many parameters as the paper's MLP (Shazeer
    2020): its width is 2/3 of model.mlp_ratio times model.hidden_size."""

    multiple: int = field(8, ge=1, doc="the hidden width is rounded to the nearest multiple of this")

    def layer(self, width: int, hidden: int, rows: int) -> SwiGLULayer:
        narrow = 2 * hidden / 3
        rounded = round(narrow / self.multiple) * self.multiple
        return SwiGLULayer(width, rounded or max(1, round(narrow)), rows)
