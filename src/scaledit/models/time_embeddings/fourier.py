"""Random Fourier features of the time (Tancik et al. 2020, eq. 5; Karras et al. 2024), then the paper's MLP.

gamma(t) = [cos(2 pi b_k t / 1000), sin(2 pi b_k t / 1000)],   b_k ~ N(0, bandwidth^2),   k = 1..128

The frequencies b_k are drawn once, from `seed`, and never trained. They follow from the config alone, with
Python's generator, so that they are the same on every machine and in no checkpoint.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING

from scaledit.errors import UsageError
from scaledit.lazy import Lazy, Tensor, torch
from scaledit.models.description import TIME_FREQUENCIES, TimestepEmbedder
from scaledit.models.time_embeddings import LAST_TIME, TimeEmbedding
from scaledit.part import field

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models import layers
    from scaledit.models.config import DiTConfig
else:
    layers = Lazy("scaledit.models.layers")

FEWEST_CYCLES = 0.25
"""Cycles over all times of a frequency of one standard deviation, below which the features are constant."""
SMALLEST = 2.0**-54
"""In place of a uniform number of 0, whose quantile is infinite."""


def frequencies(bandwidth: float, seed: int) -> Tensor:
    """2 pi b_k / 1000, (128,) float32 on the CPU: computed in float64 and rounded once."""
    draw, normal = random.Random(seed), NormalDist()
    scale = 2 * math.pi * bandwidth / LAST_TIME
    numbers = [normal.inv_cdf(draw.random() or SMALLEST) * scale for _ in range(TIME_FREQUENCIES // 2)]
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")


@dataclass(frozen=True)
class FourierLayer(TimestepEmbedder):
    """The paper's embedder at random frequencies."""

    bandwidth: float
    seed: int

    def build(self) -> nn.Module:
        return layers.TimestepEmbedder(self.width, partial(frequencies, self.bandwidth, self.seed))


@dataclass(frozen=True)
class Fourier(TimeEmbedding, name="fourier"):
    """Cosines and sines of 128 random frequencies, then the paper's MLP (Tancik et al. 2020)."""

    bandwidth: float = field(
        10.0,
        gt=0,
        doc="standard deviation of the frequencies, in cycles per 1000 of the network's time: per schedule; "
        "1000 for EDM's times is the value of Karras et al. 2024",
    )
    seed: int = field(0, ge=0, doc="seed of the frequencies")

    def layer(self, config: DiTConfig) -> FourierLayer:
        return FourierLayer(config.hidden_size, self.bandwidth, self.seed)

    def fits_times(self, low: float | None, high: float | None) -> None:
        if low is None or high is None:
            return
        cycles = self.bandwidth * (high - low) / LAST_TIME
        if cycles < FEWEST_CYCLES:
            raise UsageError(
                f"model.time_embedding.bandwidth {self.bandwidth:g} cannot tell the network's times apart, "
                f"which are {low:.3g} to {high:.3g} with this diffusion.prediction; use "
                f"{LAST_TIME / min(1, high - low):g}"
            )
