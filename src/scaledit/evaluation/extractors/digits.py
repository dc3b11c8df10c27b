"""The small classifier of the digits, whose weights are shipped, and the same network with random weights
(scaledit.evaluation.digits)."""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.evaluation.extractors import ON_CLASSIFIER, ON_TWIN, SmallNetwork


@dataclass(frozen=True)
class DigitsClassifier(SmallNetwork, name="digits"):
    """A small classifier of the digits, trained on the training split."""

    module = "digits"
    side = 8
    outputs = ("pool", "logits", "nearest")
    classifies = True
    about = f"FD-digits: {ON_CLASSIFIER}"


@dataclass(frozen=True)
class DigitsTwin(SmallNetwork, name="digits-random"):
    """The same network with random weights: a trained one hardly sees fine noise, this one does."""

    module = "digits"
    side = 8
    twin = True
    about = f"FD-digits-random: {ON_TWIN}"
