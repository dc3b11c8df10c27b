"""A block design of your own: attention and MLP in parallel (Wang & Komatsuzaki 2021; ViT-22B, 2023).

    scaledit train digits model.conditioning=my_blocks:Parallel

x + g (Attn(h) + MLP(h)),   h = (1 + s) LN x + b,   b, s, g = W silu(t + c)

W is initialized to zero, so each block starts as the identity. The norm and the MLP are the config's, so that
model.norm=rms and model.mlp=swiglu work here too.
"""

from dataclasses import dataclass

from scaledit.models.blocks import Block, attention, mlp, norm
from scaledit.models.blocks.adaln import modulate
from scaledit.models.description import Modulation


@dataclass(frozen=True)
class Parallel(Block, name="parallel"):
    """Attention and MLP read the same modulated norm, so a block has one norm and three vectors."""

    def layers(self, config):
        rows = config.sequence
        return {
            "norm": norm(config, rows, affine=False),
            "attn": attention(config, rows),
            "mlp": mlp(config, rows),
            "modulation": Modulation(config.hidden_size, 3),
        }

    def forward(self, m, x, embedded):
        shift, scale, gate = m.modulation(embedded.vector).chunk(3, dim=1)
        h = modulate(m.norm(x), shift, scale)
        return x + gate.unsqueeze(1) * (m.attn(h, embedded.places) + m.mlp(h))
