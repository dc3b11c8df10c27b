"""A learned table of times, as of positions in BERT (Devlin et al. 2019).

E[k] + f (E[k + 1] - E[k]),   k + f = t (entries - 1) / 1000,   0 <= f < 1

With 1001 entries, each whole time from 0 to 1000 has its own: with the paper's 1,000 steps, each step.
Between two entries the embedding is on the line between them, so continuous times have one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.errors import UsageError
from scaledit.lazy import Lazy
from scaledit.models.description import Embedding
from scaledit.models.time_embeddings import LAST_TIME, TimeEmbedding
from scaledit.part import field

if TYPE_CHECKING:
    from torch import nn

    from scaledit.models import variants
    from scaledit.models.config import DiTConfig
else:
    variants = Lazy("scaledit.models.variants")


@dataclass(frozen=True)
class TimeTableLayer(Embedding):
    """A look-up table of times 0 to 1000."""

    def build(self) -> nn.Module:
        return variants.TimeTable(self.entries, self.width, LAST_TIME)


@dataclass(frozen=True)
class TimeTable(TimeEmbedding, name="table"):
    """A learned vector for each of evenly spaced times, and lines between them."""

    entries: int = field(
        LAST_TIME + 1, ge=2, doc="number of times with a vector of their own, from the first to the last"
    )

    def layer(self, config: DiTConfig) -> TimeTableLayer:
        return TimeTableLayer(self.entries, config.hidden_size)

    def fits_times(self, low: float | None, high: float | None) -> None:
        if (low, high) != (0, LAST_TIME):
            times = "unknown" if low is None or high is None else f"{low:.3g} to {high:.3g}"
            raise UsageError(
                f'model.time_embedding="table" is a table of the times 0 to {LAST_TIME}, but those that '
                f"diffusion.prediction passes to the network are {times}; use "
                'model.time_embedding="sinusoidal"'
            )
