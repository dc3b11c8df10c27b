"""The paper's time embedding (Vaswani et al. 2017; Dhariwal & Nichol 2021): sinusoids, then an MLP.

gamma(t) = [cos(t w_k), sin(t w_k)],   w_k = 10000^(-k / 128),   k = 0..127
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.models.description import TimestepEmbedder
from scaledit.models.time_embeddings import TimeEmbedding

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class Sinusoidal(TimeEmbedding, name="sinusoidal"):
    """Cosines and sines of 128 frequencies, then an MLP, as in the paper."""

    def layer(self, config: DiTConfig) -> TimestepEmbedder:
        return TimestepEmbedder(config.hidden_size)
