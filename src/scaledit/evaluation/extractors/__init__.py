"""Extractors: which network turns images into features, and what the distance on them is called.

    images (N, 3, H, W) uint8 -> {"pool": (N, D), "logits": (N, K), ...}

    the distance is FID with Inception alone; elsewhere FD-SUFFIX, which compares with nothing but itself

The parts here say what there is and load it; networks are in scaledit.evaluation. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scaledit.part import Part

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork

__all__ = ["Extractor"]


class Extractor(Part, kind="extractor", home="scaledit.evaluation.extractors", needs=("load",)):
    """suffix: of the distance's name. outputs: the features that metrics may read ("pool" of any; "spatial"
    is kept as statistics only). classifies: "logits" are over the classes of the data itself. small: a
    network for one small set, whose distances are told over several sample seeds. about: a sentence for
    reports."""

    suffix: ClassVar[str] = ""
    outputs: ClassVar[tuple[str, ...]] = ("pool",)
    classifies: ClassVar[bool] = False
    small: ClassVar[bool] = False
    about: ClassVar[str] = ""

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        """The network, its weights checked. Raises UsageError saying what is missing and where to get it."""
        raise NotImplementedError

    @classmethod
    def distance(cls, letter: str = "F") -> str:
        """What a distance on the features is called. letter: F for Fréchet, K for the kernel."""
        return f"{letter}D-{cls.suffix or cls.NAME or cls.__name__}"
