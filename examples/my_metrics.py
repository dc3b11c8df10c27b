"""A metric of your own: the distance between the mean features of the samples and of the reference.

scaledit evaluate samples.npz --reference digits --metrics fd_digits,my_metrics:MeanDistance
"""

from dataclasses import dataclass

import numpy as np

from scaledit.evaluation.metrics import Metric
from scaledit.part import field


@dataclass(frozen=True)
class MeanDistance(Metric):
    """The distance between the means of the pooled features."""

    title = "distance of means"
    of_reference = ("pool",)

    power: float = field(2.0, gt=0, doc="order of the norm")

    def compute(self, reference, samples, context):
        apart = reference.pool.mean(axis=0) - samples.pool.mean(axis=0)
        return float(np.linalg.norm(apart, self.power))
