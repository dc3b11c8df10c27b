"""FD-photos' extractors: a small classifier of 64x64 crops of the twelve photographs, and its random twin.

    photos   53,000 parameters: 64 features, 12 logits

`python -m scaledit.evaluation.photos` retrains the shipped weights in about a minute.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from scaledit.data.photos import CLASS_NAMES, SIDE, photos
from scaledit.evaluation.small import SmallExtractor, fit, load_shipped, randomize, scaled, write_shipped

FEATURES = 64
WIDTHS = (16, 32, 48, 64)
WEIGHTS = "photos.safetensors"
SHA256 = "b5723bcde4d82fc32eafe03aa4f0a6ed693472fa9e63a0fba44756266314a8eb"


class PhotoClassifier(nn.Module):
    """Four 3x3 convolutions with stride 2, global average pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=2) for a, b in zip(inputs, WIDTHS, strict=False)
        )
        self.features = nn.Linear(WIDTHS[-1], FEATURES)
        self.classes = nn.Linear(FEATURES, len(CLASS_NAMES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, 64, 64) in [-1, 1] -> features (N, 64), logits (N, 12)."""
        for conv in self.convs:
            x = gelu(conv(x))
        features = gelu(self.features(x.mean(dim=(2, 3))))
        return features, self.classes(features)


def as_pixels(images: Tensor) -> Tensor:
    """(N, 3, 64, 64) uint8 -> float32 in [-1, 1]. Raises UsageError for another size."""
    return scaled(images, SIDE, "the photographs' extractor")


def trained() -> SmallExtractor:
    """The shipped classifier. Raises RunError if its file is corrupt."""
    network = PhotoClassifier()
    load_shipped(network, WEIGHTS, SHA256)
    return SmallExtractor(network, "photos", SHA256, as_pixels)


def random_twin() -> SmallExtractor:
    network = PhotoClassifier()
    return SmallExtractor(network, "photos-random", randomize(network), as_pixels)


def train(seed: int = 0, steps: int = 800, batch_size: int = 64) -> nn.Module:
    """A newly trained classifier."""
    return fit(PhotoClassifier, photos(), _flipped, seed, steps, batch_size)


def _flipped(x: Tensor, rng: np.random.Generator) -> Tensor:
    flips = torch.from_numpy(rng.random(len(x)) < 0.5)[:, None, None, None]
    return torch.where(flips, x.flip(-1), x)


if __name__ == "__main__":
    write_shipped(train(), WEIGHTS, photos(held_out=True))
