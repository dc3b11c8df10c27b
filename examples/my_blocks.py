"""A block design of your own: attention and MLP in parallel (Wang & Komatsuzaki 2021; ViT-22B, 2023).

    scaledit train digits model.conditioning=my_blocks:Parallel

x + g (Attn(h) + MLP(h)),   h = (1 + s) LN x + b,   b, s, g = W silu(t + c)

W is initialized to zero, so each block starts as the identity.
"""

from dataclasses import dataclass

from scaledit.models.blocks import Block
from scaledit.models.blocks.adaln import modulate
from scaledit.models.description import MLP, LayerNorm, Modulation, SelfAttention


@dataclass(frozen=True)
class Parallel(Block, name="parallel"):
    """Attention and MLP read the same modulated norm, so a block has one norm and three vectors."""

    def layers(self, config):
        d, rows = config.hidden_size, config.tokens
        return {
            "norm": LayerNorm(d, rows, affine=False),
            "attn": SelfAttention(d, config.num_heads, rows),
            "mlp": MLP(d, config.mlp_hidden, rows),
            "modulation": Modulation(d, 3),
        }

    def forward(self, m, x, embedded):
        shift, scale, gate = m.modulation(embedded.vector).chunk(3, dim=1)
        h = modulate(m.norm(x), shift, scale)
        return x + gate.unsqueeze(1) * (m.attn(h, embedded.places) + m.mlp(h))
