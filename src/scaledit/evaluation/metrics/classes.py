"""How a classifier sees the samples: how certain it is, and whether it predicts the requested class.

IS       = exp E_x KL(p(y|x) || E_x p(y|x))                           Salimans et al. 2016
accuracy = share of samples whose largest logit is that of their class
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.extractors.inception import InceptionFeatures
from scaledit.evaluation.metric import Column, Metric, MetricContext
from scaledit.evaluation.statistics import check_features
from scaledit.lazy import np
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference


@dataclass(frozen=True)
class ClassAccuracy(Metric, name="class_accuracy"):
    """The share of samples for which the extractor predicts the requested class."""

    title = "class accuracy"
    better = "higher"
    fraction = True
    brief = True
    reads = ("logits", "labels")
    of_reference = ()
    order = 10

    def applies(self, extractor: Extractor) -> bool:
        return super().applies(extractor) and extractor.classifies

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert samples.logits is not None and samples.labels is not None
        return float((samples.logits.argmax(axis=1) == samples.labels).mean())


@dataclass(frozen=True)
class InceptionScore(Metric, name="inception_score"):
    """The Inception Score; with another classifier, the class score."""

    better = "higher"
    reads = ("logits",)
    of_reference = ()
    order = 11

    split_size: int = field(5000, ge=2, doc="samples per split; the score is averaged over splits")

    def applies(self, extractor: Extractor) -> bool:
        """Another network's logits over ImageNet's classes would give another score under the same name."""
        return super().applies(extractor) and (
            extractor.classifies or isinstance(extractor, InceptionFeatures)
        )

    def columns(self, extractor: Extractor) -> tuple[Column, ...]:
        if not extractor.classifies:
            return (self.column("", "Inception Score", brief=True),)
        about = "Class score: the Inception Score with that classifier; at most the number of classes."
        return (self.column("", "class score", about=about),)

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert samples.logits is not None
        return inception_score(samples.logits, self.split_size)


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    """The mean of the score over consecutive splits of `split_size` samples, as ADM computes it.

    logits (N, classes); ADM's score uses those without the bias of the last layer. Returns 1 if all
    predictions are equal, and the number of classes if each is certain and all are equally frequent. Raises
    UsageError if a logit is not finite.
    """
    check_features(logits)
    scores = []
    for first in range(0, len(logits), split_size):
        split = logits[first : first + split_size].astype(np.float64)
        split = split - split.max(axis=1, keepdims=True)
        log_p = split - np.log(np.exp(split).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))
