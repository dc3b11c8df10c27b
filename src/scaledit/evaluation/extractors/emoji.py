"""The small classifier of the emoji, whose weights are shipped, and the same network with random weights
(scaledit.evaluation.emoji)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.evaluation.extractors import ON_CLASSIFIER, ON_TWIN, SmallNetwork

if TYPE_CHECKING:
    import torch

    from scaledit.evaluation.features import FeatureNetwork


@dataclass(frozen=True)
class EmojiClassifier(SmallNetwork, name="emoji"):
    """A small classifier of the emoji, trained on the training split; logits over their categories."""

    module = "emoji"
    outputs = ("pool", "logits", "nearest")
    classifies = True
    about = f"FD-emoji: {ON_CLASSIFIER}"


@dataclass(frozen=True)
class EmojiSubcategories(EmojiClassifier, name="emoji-subcategories"):
    """The same network with the same features; logits over the subcategories."""

    suffix = "emoji"

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        from scaledit.evaluation import emoji

        return emoji.trained("subcategory")


@dataclass(frozen=True)
class EmojiTwin(SmallNetwork, name="emoji-random"):
    """The same network with random weights: a trained one hardly sees fine noise, this one does."""

    module = "emoji"
    twin = True
    about = f"FD-emoji-random: {ON_TWIN}"
