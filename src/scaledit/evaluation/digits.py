"""FD-digits' extractors: a small classifier of the 8x8 digits, and its random twin.

    digits    81,000 parameters: 64 features, 10 logits
    nearest   mean distance of samples to their nearest training digit, over that of held-out digits
              (well below 1: the model copies; well above: it does not make digits)

`python -m scaledit.evaluation.digits` trains the shipped weights again, in about 10 s.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from scaledit.data.sets import DIGITS_SIDE, digits
from scaledit.errors import UsageError
from scaledit.evaluation.small import SmallExtractor, accuracy, fit, load_shipped, randomise

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
    """(N, 3, 8, 8) uint8, grey -> (N, 1, 8, 8) in [-1, 1]."""
    if images.shape[1:] != (3, DIGITS_SIDE, DIGITS_SIDE):
        _, _, h, w = images.shape
        raise UsageError(f"the digits' extractor reads {DIGITS_SIDE}x{DIGITS_SIDE} images, these are {w}x{h}")
    return (images[:, :1].float() - 127.5) / 127.5


@lru_cache(maxsize=1)
def trained() -> SmallExtractor:
    """The shipped classifier. Raises RunError if its file is not the one that was shipped."""
    network = DigitClassifier()
    load_shipped(network, WEIGHTS, SHA256)
    return SmallExtractor(network, "digits", SHA256, as_pixels, {"nearest": nearest_distance})


@lru_cache(maxsize=1)
def random_twin() -> SmallExtractor:
    network = DigitClassifier()
    return SmallExtractor(network, "digits-random", randomise(network), as_pixels)


def nearest_distance(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) in [-1, 1] -> (N,): the Euclidean distance to the nearest training digit."""
    return torch.cdist(x.flatten(1), digits().images.flatten(1)).min(dim=1).values


def train(seed: int = 0, steps: int = 600, batch_size: int = 64) -> nn.Module:
    """The classifier from nothing: shifts by up to a pixel, a little noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitClassifier()
    return fit(network, digits(), _augmented, seed, steps, batch_size)


def _augmented(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along both axes, dark coming in; noise."""
    padded = pad(x, (1, 1, 1, 1), value=-1.0)
    corners = rng.integers(0, 3, size=(len(x), 2)).tolist()
    moved = torch.stack(
        [padded[i, :, a : a + DIGITS_SIDE, b : b + DIGITS_SIDE] for i, (a, b) in enumerate(corners)]
    )
    return moved + 0.1 * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))


def _main() -> None:
    from safetensors.torch import save

    network = train()
    data = save(network.state_dict())
    (Path(__file__).parent / WEIGHTS).write_bytes(data)
    held_out = accuracy(network, digits(held_out=True))
    print(f"{WEIGHTS}: {held_out:.1%} of held-out digits; SHA256 = {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    _main()
