"""Inception of 2015-12-05, on which FID, sFID, KID and the Inception Score are defined (Heusel et al. 2017,
Nash et al. 2021, Binkowski et al. 2018, Salimans et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import Extractor
from scaledit.part import field

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork


@dataclass(frozen=True)
class InceptionFeatures(Extractor, name="inception"):
    """Inception of 2015-12-05, on which FID is defined: 2,048 features."""

    outputs = ("pool", "spatial", "logits")

    weights: str = field("", doc="file of weights; empty for the places that docs/evaluation.md lists")
    verify: bool = field(True, doc="refuse weights whose SHA-256 is not the known one")

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import inception

        return inception.load(self.weights or None, verify=self.verify, device=device)

    def distance(self, letter: str = "F") -> str:
        return f"{letter}ID"
