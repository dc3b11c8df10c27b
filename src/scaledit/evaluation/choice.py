"""Which extractor compares samples with real images that have none of their own: the first of

evaluate.extractor (--extractor)
the one whose weights are named: evaluate.dinov2, evaluate.inception, $SCALEDIT_INCEPTION
the one that the reference file was made with (ADM's: Inception)
Inception, if its weights are found            the distance is FID
EfficientNet-Lite0, if its package is installed
its twin with random weights                   on which no conclusion may be based
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from scaledit import part
from scaledit.config import EvaluateConfig
from scaledit.errors import UsageError
from scaledit.evaluation import efficientnet, inception
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.extractors.dinov2 import DINOv2Features
from scaledit.evaluation.extractors.efficientnet import EfficientNetFeatures, EfficientNetTwin
from scaledit.evaluation.extractors.inception import InceptionFeatures
from scaledit.part import YOURS, Allowed

NO_VERDICT = (
    "the extractor has random weights, which know nothing about what images show: these metrics must not be "
    "used for a verdict"
)
LITE = 'pip install "scaledit[features]"'


class Choice(NamedTuple):
    """An extractor and why it was chosen, in words."""

    extractor: Extractor
    why: str

    @property
    def remarks(self) -> list[str]:
        """What a reader of the metrics must know about the extractor."""
        remarks = [] if self.extractor.conclusive else [NO_VERDICT]
        if self.why == NOTHING_FOUND:
            remarks.append(f"an extractor with weights: {LITE}, or the Inception weights (--inception)")
        if self.why == NO_INCEPTION:
            remarks.append(
                f"the Inception weights were not found, so there is no FID; compare "
                f"{self.extractor.distance()} only with itself"
            )
        return remarks


NAMED = "it was named"
MADE_WITH = "the reference was made with it"
FOUND = "the Inception weights were found"
NO_INCEPTION = "the Inception weights were not found, and EfficientNet-Lite0 is installed"
NOTHING_FOUND = "neither the Inception weights nor EfficientNet-Lite0 were found"


def choose(config: EvaluateConfig, recorded: str | None = None, allowed: Allowed = YOURS) -> Choice:
    """The extractor that `config` names, or the best one at hand; its weights are not read.

    recorded: the name of the network with which the reference file was made, if it is one of features.
    allowed: the modules that evaluate.extractor may be imported from. Raises UsageError if two are named, or
    one that is unknown.
    """
    with_weights = {
        "dinov2": config.dinov2 and DINOv2Features(config.dinov2),
        "inception": (config.inception or config.any_inception or os.environ.get(inception.VARIABLE))
        and InceptionFeatures(config.inception, verify=not config.any_inception),
    }
    if config.extractor:
        given = {"dinov2": config.dinov2, "inception": config.inception or config.any_inception}
        if other := [name for name, value in given.items() if value and name != config.extractor]:
            raise UsageError(
                f"evaluate.extractor={config.extractor} and weights of {other[0]} were named; leave one out"
            )
        chosen = with_weights.get(config.extractor) or part.build(
            Extractor, config.extractor, "evaluate.extractor", allowed
        )
        return Choice(chosen, NAMED)
    for extractor in with_weights.values():
        if isinstance(extractor, Extractor):
            return Choice(extractor, NAMED)
    networks: Mapping[str, Any] = {
        inception.InceptionExtractor.name: InceptionFeatures,
        "efficientnet-lite0": EfficientNetFeatures,
        "efficientnet-lite0-random": EfficientNetTwin,
    }
    if recorded in networks:
        return Choice(networks[recorded](), MADE_WITH)
    if inception.is_found():
        return Choice(InceptionFeatures(), FOUND)
    if efficientnet.weights_file() is not None:
        return Choice(EfficientNetFeatures(), NO_INCEPTION)
    return Choice(EfficientNetTwin(), NOTHING_FOUND)
