"""Time embeddings: from the network's time to a vector. One file per embedding.

A network's times are 0..1000 (t), unless the parameterization passes something else, such as alpha in 0..1 or
EDM's ln(sigma) / 4 (`scaledit.diffusion.parameterization`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaledit.models.description import Layer
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig

LAST_TIME = 1000
"""The network's time where there is nothing but noise."""


class TimeEmbedding(Part, kind="time embedding", home="scaledit.models.time_embeddings", needs=("layer",)):
    """Makes a vector of each time; a second time (model.second_time) is embedded by another layer of the same
    kind."""

    def layer(self, config: DiTConfig) -> Layer:
        """The layer, (N,) -> (N, D). Its module gets times in float64 if derivatives are to be checked."""
        raise NotImplementedError

    def fits_times(self, low: float | None, high: float | None) -> None:
        """Raises UsageError if the embedding cannot tell the network's times apart. low, high: their range,
        None if it is unknown (a parameterization of your own)."""
