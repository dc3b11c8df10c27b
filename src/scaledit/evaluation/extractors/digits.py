"""The digits' own small classifier, shipped with its hash, and its twin with random weights
(scaledit.evaluation.digits)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import Extractor

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork


@dataclass(frozen=True)
class DigitsClassifier(Extractor, name="digits"):
    """A small classifier of the digits, trained on the training split."""

    suffix = "digits"
    outputs = ("pool", "logits", "nearest")
    classifies = True
    small = True
    about = (
        "FD-digits: Fréchet distance to the training images on the features of a small classifier (not FID: "
        "it compares with nothing else)."
    )

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import digits

        return digits.trained()


@dataclass(frozen=True)
class DigitsTwin(Extractor, name="digits-random"):
    """The same network with random weights: a trained one hardly sees fine noise, this one does."""

    suffix = "digits-random"
    small = True
    about = "FD-digits-random: on the same network untrained, which sees fine noise."

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import digits

        return digits.random_twin()
