"""DINOv2, whose features agree with human judgement better than Inception's (Stein et al. 2023)."""

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
    """A local DINOv2 in transformers' format; Stein et al. use dinov2-large."""

    suffix = "DINOv2"

    folder: str = field("", doc="a folder with config.json and model.safetensors")

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import dinov2

        return dinov2.load(self.folder, device)
