"""The photos' own small classifier, shipped with its hash, and its twin with random weights
(scaledit.evaluation.photos)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import Extractor

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork


@dataclass(frozen=True)
class PhotosClassifier(Extractor, name="photos"):
    """A small classifier of the photos, trained on the training split."""

    suffix = "photos"
    outputs = ("pool", "logits")
    classifies = True
    small = True
    about = (
        "FD-photos: Fréchet distance to the training images on the features of a small classifier (not FID: "
        "it compares with nothing else)."
    )

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import photos

        return photos.trained()


@dataclass(frozen=True)
class PhotosTwin(Extractor, name="photos-random"):
    """The same network with random weights: a trained one hardly sees fine noise, this one does."""

    suffix = "photos-random"
    small = True
    about = "FD-photos-random: on the same network untrained, which sees fine noise."

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import photos

        return photos.random_twin()
