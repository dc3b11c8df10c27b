"""A metric of one's own, on features: the distance between the means of samples and reference.

    scaledit evaluate runs/demo --reference digits --metrics mean_distance:MeanDistance

|| mean of the reference's features - mean of the samples' features ||
"""

from dataclasses import dataclass

import numpy as np

from scaledit.evaluation.metric import Metric


@dataclass(frozen=True)
class MeanDistance(Metric, name="mean_distance"):
    """How far apart the means are: the first of the two terms of the Fréchet distance, as a length."""

    title = "distance of means"
    of_reference = ("statistics",)

    def compute(self, reference, samples, given):
        return float(np.linalg.norm(reference.statistics.mean - samples.pool.mean(axis=0)))
