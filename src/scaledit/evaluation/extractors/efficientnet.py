"""EfficientNet-Lite0, whose ImageNet weights come with a Python package, and the same network with random
weights (scaledit.evaluation.efficientnet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import Extractor

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork


@dataclass(frozen=True)
class EfficientNetFeatures(Extractor, name="efficientnet-lite0"):
    """EfficientNet-Lite0 trained on ImageNet: 1,280 features. Needs the extra "scaledit[features]"."""

    suffix = "EfficientNet-Lite0"
    outputs = ("pool", "logits")
    about = (
        "FD-EfficientNet-Lite0: Fréchet distance on the features of EfficientNet-Lite0, trained on ImageNet "
        "(not FID: comparable only with itself)."
    )

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import efficientnet

        return efficientnet.EfficientNetExtractor(
            efficientnet.pretrained(), "efficientnet-lite0", efficientnet.SHA256, device
        )


@dataclass(frozen=True)
class EfficientNetTwin(Extractor, name="efficientnet-lite0-random"):
    """The same network with random weights, which needs no package. Its distances say little about what
    images show: do not base a verdict on them."""

    suffix = "EfficientNet-Lite0-random"
    outputs = ("pool", "logits")
    conclusive = False
    about = (
        "FD-EfficientNet-Lite0-random: on the same network with random weights, which knows nothing about "
        "what images show. Do not base a verdict on it."
    )

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import efficientnet

        network, sha256 = efficientnet.random_twin()
        return efficientnet.EfficientNetExtractor(network, "efficientnet-lite0-random", sha256, device)
