"""adaLN-single: adaLN-Zero with one modulation for all blocks (Chen et al. 2023, PixArt-alpha, section 2.3).

    S = W silu(t + c);   b1, s1, g1, b2, s2, g2 = S + E_i in block i;   the block is that of adaLN-Zero

E_i is a learned table of six vectors per block. W is 6 D^2 weights once, where adaLN-Zero has them in every
block: XL/2 has 32 % fewer parameters. In PixArt-alpha only the time is in S, and the text is attended to;
here the class is in it too, since it has no other way into the block. W and the tables start at zero, so that
each block starts as the identity, as in adaLN-Zero (PixArt-alpha starts from a trained DiT instead). The
final layer is adaLN's, with a modulation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.models.blocks import Embedded
from scaledit.models.blocks.adaln_zero import AdaLNZero, gated
from scaledit.models.description import Activations, Layers, Modulation, Vector

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class AdaLNSingle(AdaLNZero, name="adaln_single", title="adaLN-single"):
    """One modulation by the time and the class for all blocks, to which each block adds learned vectors (Chen
    et al. 2023)."""

    def layers(self, config: DiTConfig) -> Layers:
        return {**super().layers(config), "modulation": Vector(self.VECTORS * config.hidden_size)}

    def shared_layers(self, config: DiTConfig) -> Layers:
        return {"modulation": Modulation(config.hidden_size, self.VECTORS)}

    def prepare(self, net: Any, embedded: Embedded) -> Embedded:
        return embedded._replace(shared=net.modulation(embedded.vector))

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        return gated(m, x, embedded, embedded.shared + m.modulation())

    def activations(self, config: DiTConfig) -> Activations:
        """adaLN-Zero's without t + c and silu(t + c), which all blocks share."""
        d = config.hidden_size
        return super().activations(config).plus(Activations(wide=-d, narrow=-d))

    def shared_activations(self, config: DiTConfig) -> Activations:
        """t + c and silu(t + c)."""
        return Activations(wide=config.hidden_size, narrow=config.hidden_size)
