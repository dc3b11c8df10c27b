"""Metrics on features (numpy arrays, one row per sample); no images, no networks.

The functions are for other code; the parts beside them are what `scaledit evaluate` computes.
"""

from scaledit.evaluation.metric import Column, Metric, MetricContext
from scaledit.evaluation.metrics.classes import inception_score
from scaledit.evaluation.metrics.frechet import Extrapolated, frechet_distance, frechet_distance_infinity
from scaledit.evaluation.metrics.kernel import Spread, kid
from scaledit.evaluation.metrics.neighbors import (
    DensityCoverage,
    Neighborhoods,
    PrecisionRecall,
    density_coverage,
    neighborhoods,
    precision_recall,
)
from scaledit.evaluation.statistics import Accumulator, Statistics

__all__ = [
    "Accumulator",
    "Column",
    "DensityCoverage",
    "Extrapolated",
    "Metric",
    "MetricContext",
    "Neighborhoods",
    "PrecisionRecall",
    "Spread",
    "Statistics",
    "density_coverage",
    "frechet_distance",
    "frechet_distance_infinity",
    "inception_score",
    "kid",
    "neighborhoods",
    "precision_recall",
]
