"""FD-digits' extractors: a small classifier of the 8x8 digits, and its random twin.

    digits    81,000 parameters: 64 features, 10 logits
    nearest   distance to the nearest training digit; its mean over that of held-out digits is well below 1
              if the model copies, and well above 1 if it does not generate digits

`python -m scaledit.evaluation.digits` retrains the shipped weights in about 10 s.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from scaledit.data.sets import DIGITS_SIDE, digits
from scaledit.errors import UsageError
from scaledit.evaluation.small import SmallExtractor, fit, load_shipped, randomize, scaled, write_shipped

FEATURES = 64
WEIGHTS = "digits.safetensors"
SHA256 = "c6868c14880d9a4640d298db5e54538bf9ffd835886e5b8f25cf61520bb001a1"


class DigitClassifier(nn.Module):
    """Three 3x3 convolutions, the last with stride 2, then two linear layers."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2)
        self.features = nn.Linear(2 * width * (DIGITS_SIDE // 2) ** 2, FEATURES)
        self.classes = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 1, 8, 8) in [-1, 1] -> features (N, 64), logits (N, 10)."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = gelu(layer(x))
        features = gelu(self.features(x.flatten(1)))
        return features, self.classes(features)


def as_pixels(images: Tensor) -> Tensor:
    """(N, 3, 8, 8) uint8, gray -> (N, 1, 8, 8) in [-1, 1]. Raises UsageError for another size and for colored
    images, of which two channels would be ignored."""
    pixels = scaled(images, DIGITS_SIDE, "the digits' extractor")
    if not bool((pixels == pixels[:, :1]).all()):
        raise UsageError(
            "the digits' extractor needs gray images, but these are colored; use another reference, or "
            "convert them to gray"
        )
    return pixels[:, :1]


def trained() -> SmallExtractor:
    """The shipped classifier. Raises RunError if its file is corrupt."""
    network = DigitClassifier()
    load_shipped(network, WEIGHTS, SHA256)
    return SmallExtractor(network, "digits", SHA256, as_pixels, {"nearest": nearest_distance})


def random_twin() -> SmallExtractor:
    network = DigitClassifier()
    return SmallExtractor(network, "digits-random", randomize(network), as_pixels)


def nearest_distance(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) in [-1, 1] -> (N,): the Euclidean distance to the nearest training digit."""
    return torch.cdist(x.flatten(1), digits().images.flatten(1)).min(dim=1).values


def train(seed: int = 0, steps: int = 600, batch_size: int = 64) -> nn.Module:
    """A newly trained classifier."""
    return fit(DigitClassifier, digits(), _shifted, seed, steps, batch_size)


def _shifted(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image shifted by -1, 0 or 1 pixel along both axes, padded with black."""
    padded = pad(x, (1, 1, 1, 1), value=-1.0)
    corners = rng.integers(0, 3, size=(len(x), 2)).tolist()
    return torch.stack(
        [padded[i, :, a : a + DIGITS_SIDE, b : b + DIGITS_SIDE] for i, (a, b) in enumerate(corners)]
    )


if __name__ == "__main__":
    write_shipped(train(), WEIGHTS, digits(held_out=True))
