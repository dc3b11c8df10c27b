"""The small classifier of the photos, whose weights are shipped, and the same network with random weights
(scaledit.evaluation.photos)."""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.evaluation.extractors import ON_CLASSIFIER, ON_TWIN, SmallNetwork


@dataclass(frozen=True)
class PhotosClassifier(SmallNetwork, name="photos"):
    """A small classifier of the photos, trained on the training split."""

    module = "photos"
    side = 64
    outputs = ("pool", "logits")
    classifies = True
    about = f"FD-photos: {ON_CLASSIFIER}"


@dataclass(frozen=True)
class PhotosTwin(SmallNetwork, name="photos-random"):
    """The same network with random weights: a trained one hardly sees fine noise, this one does."""

    module = "photos"
    side = 64
    twin = True
    about = f"FD-photos-random: {ON_TWIN}"
