"""Extractors: the networks that turn images into features, and the name of the distance on those.

    images (N, 3, H, W) uint8 -> {"pool": (N, D), "logits": (N, K), ...}

The distance is called FID with Inception only. Elsewhere it is FD-SUFFIX, comparable only with itself.
The parts here describe and load the networks, which are in scaledit.evaluation. Imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, ClassVar

from scaledit.part import Part

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork

__all__ = ["Extractor"]


class Extractor(Part, kind="extractor", home="scaledit.evaluation.extractors", needs=("load",)):
    """suffix: of the distance's name, by default the extractor's name. outputs: the features that metrics may
    read (every extractor gives "pool"; only statistics of "spatial" are kept). classifies: "logits" are over
    the classes of the data. small: a network for one small set, whose distances are reported over several
    sample seeds. side: of the only images that it accepts, in pixels; None if it resizes them. conclusive:
    whether conclusions may be based on its distances alone. about: a sentence for reports."""

    suffix: ClassVar[str] = ""
    outputs: ClassVar[tuple[str, ...]] = ("pool",)
    classifies: ClassVar[bool] = False
    small: ClassVar[bool] = False
    side: ClassVar[int | None] = None
    conclusive: ClassVar[bool] = True
    about: ClassVar[str] = ""

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        """The network, its weights verified. Raises UsageError if something is missing, with its source."""
        raise NotImplementedError

    def distance(self, letter: str = "F") -> str:
        """The name of a distance on the features. letter: F for Fréchet, K for the kernel."""
        return f"{letter}D-{self.suffix or self.NAME or type(self).__name__}"


class SmallNetwork(Extractor):
    """The network of one built-in set, in the module `module` of scaledit.evaluation. twin: with random
    weights; a trained network hardly sees fine noise, a random one does."""

    small = True
    module: ClassVar[str]
    twin: ClassVar[bool] = False

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        module = importlib.import_module(f"scaledit.evaluation.{self.module}")
        return module.random_twin() if self.twin else module.trained()


ON_CLASSIFIER = (
    "Fréchet distance to the training images on the features of a small classifier (not FID: comparable only "
    "with itself)."
)
ON_TWIN = "on the same network untrained, which sees fine noise."
