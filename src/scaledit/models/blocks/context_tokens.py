"""Context tokens: the class and the time are several tokens each (improved MeanFlow, arXiv 2512.02012).

    [x, a_1 + t, ..., a_4 + t, b_1 + c, ..., b_8 + c];   x + Attn(LN x);   x + MLP(LN x)

a_i and b_i are learned vectors, from N(0, 1 / D). The backbone has no modulation, which is 6 D^2 of the
18 D^2 weights of an adaLN-Zero block. The norms are affine, as in in-context. A condition of several tokens
is used through its pooled vector c, as in the adaLN designs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.lazy import Tensor, torch
from scaledit.models.blocks import Block, Embedded
from scaledit.models.blocks.in_context import plain, plain_layers
from scaledit.models.description import Layers, Tokens
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class ContextTokens(Block, name="context_tokens", title="context tokens"):
    """The time and the class are several tokens each in the sequence of a plain ViT, without modulation
    (improved MeanFlow, 2025)."""

    class_tokens: int = field(8, ge=1, doc="tokens of the class")
    time_tokens: int = field(4, ge=1, doc="tokens of the time")

    def layers(self, config: DiTConfig) -> Layers:
        return plain_layers(config, config.sequence + self.time_tokens + self.class_tokens)

    def shared_layers(self, config: DiTConfig) -> Layers:
        d = config.hidden_size
        return {
            "time_tokens": Tokens(self.time_tokens, d, std=d**-0.5),
            "class_tokens": Tokens(self.class_tokens, d, std=d**-0.5),
        }

    def prepare(self, net: Any, embedded: Embedded) -> Embedded:
        times = net.time_tokens() + embedded.time.unsqueeze(1)
        classes = net.class_tokens() + embedded.pooled.unsqueeze(1)
        return embedded._replace(shared=torch.cat([times, classes], dim=1))

    def enter(self, x: Tensor, embedded: Embedded) -> Tensor:
        return torch.cat([x, embedded.shared], dim=1)

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        return plain(m, x, embedded)

    def leave(self, x: Tensor, tokens: int) -> Tensor:
        return x[:, :tokens]
