"""Whether samples are copies of training images.

nearest = mean distance of samples to their nearest training image / that of real held-out images
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.metric import Metric, MetricContext

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference


@dataclass(frozen=True)
class NearestDistance(Metric, name="nearest"):
    """The distance to the nearest training image, divided by that of held-out images."""

    title = "nearest distance"
    better = "near 1"
    brief = True
    about = (
        "Nearest distance: to the nearest training image, divided by that of held-out images; well below 1 "
        "the model copies."
    )
    reads = ("nearest",)
    of_reference = ()
    order = 40

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert samples.nearest is not None
        real = None if context.real is None else context.real.nearest
        return float(samples.nearest.mean()) / (1.0 if real is None else float(real.mean()))
