"""DINOv2, whose features follow people's judgement better than Inception's (Stein et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import Extractor
from scaledit.part import field

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork


@dataclass(frozen=True)
class DINOv2Features(Extractor, name="dinov2"):
    """A local DINOv2 in transformers' format; dinov2-large is what Stein et al. take."""

    suffix = "DINOv2"

    folder: str = field("", doc="with config.json and model.safetensors")

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import dinov2

        return dinov2.load(self.folder, device)
