"""FD-emoji's extractors: a small classifier of 32x32 emoji, and its random twin.

    emoji                 logits over the categories: log sum exp of those of their subcategories
    emoji-subcategories   the same network and features; logits over the subcategories
    nearest               distance to the nearest training emoji; see `scaledit.evaluation.digits`

    x = [height, width] --bicubic, antialiased--> longer side 32 --centered on white--> 32 x 32

Training scales, turns, moves and mirrors the drawings, so that an image of another size or shape, which is
blurred or smaller once it fits, is still recognized. `python -m scaledit.evaluation.emoji` retrains the
shipped weights in 4 minutes on one core, and `python -m scaledit.evaluation.emoji accuracy` prints their
accuracy on held-out emoji.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import affine_grid, dropout, gelu, grid_sample

from scaledit import images
from scaledit.data.emoji import SIDE, EmojiImages, emoji
from scaledit.data.emoji.classes import CATEGORIES, CATEGORY_OF, CLASS_NAMES, Classes
from scaledit.evaluation.small import SmallExtractor, fit, load_shipped, randomize, write_shipped

FEATURES = 64
WIDTHS, STRIDES = (24, 32, 48, 64, 64), (1, 2, 1, 2, 1)
GRID = 4
"""Side of the grid of averages that the features see: emoji are centered, so places matter."""
DROPOUT = 0.2
WEIGHTS = "emoji.safetensors"
SHA256 = "d91520f4ddd7764597461edade7aeae002127c787396ae3842a6166df867efd5"
RESIZE = f"bicubic with antialiasing to fit {SIDE}x{SIDE}, centered on white (Pillow)"
SCALES, ANGLE, MOVE, DARKEST = (0.95, 1.6), 0.2, 0.15, 0.8
"""Of the drawings in training: their size is divided by a scale; they are turned by up to ANGLE radians and
moved by up to MOVE of half the side; each channel's distance from white is multiplied by DARKEST to 1."""
SIZES = ((24, 24), (32, 32), (48, 48), (32, 48))
"""(height, width) at which `python -m scaledit.evaluation.emoji accuracy` measures."""


class EmojiClassifier(nn.Module):
    """Five 3x3 convolutions, two of them with stride 2, a grid of averages, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=stride)
            for a, b, stride in zip(inputs, WIDTHS, STRIDES, strict=False)
        )
        self.features = nn.Linear(WIDTHS[-1] * GRID**2, FEATURES)
        self.classes = nn.Linear(FEATURES, len(CATEGORY_OF))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, 32, 32) in [-1, 1] -> features (N, 64), logits of the subcategories (N, 101)."""
        for conv in self.convs:
            x = gelu(conv(x))
        side = x.shape[-1] // GRID
        features = gelu(self.features(nn.functional.avg_pool2d(x, side).flatten(1)))
        return features, self.classes(dropout(features, DROPOUT, self.training))


class ByCategory(nn.Module):
    """A classifier of subcategories as one of categories: p(category) is the sum of their probabilities."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        names = list(CATEGORY_OF.values())
        self.members = [[i for i, name in enumerate(names) if name == category] for category in CATEGORIES]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, 32, 32) in [-1, 1] -> features (N, 64), logits of the categories (N, 10)."""
        features, logits = self.network(x)
        return features, torch.stack([logits[:, of].logsumexp(1) for of in self.members], 1)


def as_pixels(batch: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 of any size -> (N, 3, 32, 32) in [-1, 1], fitted as RESIZE says."""
    _, _, height, width = batch.shape
    if (height, width) != (SIDE, SIDE):
        batch = torch.stack([_fitted(image) for image in batch])
    return (batch.float() - 127.5) / 127.5


def _fitted(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (3, 32, 32)."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((SIDE - width) // 2, (SIDE - height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def trained(classes: Classes = "category") -> SmallExtractor:
    """The shipped classifier, with logits over these classes. Raises RunError if its file is corrupt."""
    network = EmojiClassifier()
    load_shipped(network, WEIGHTS, SHA256)
    name = "emoji" if classes == "category" else "emoji-subcategories"
    more = {"nearest": nearest_distance}
    return SmallExtractor(_over(network, classes), name, SHA256, as_pixels, more, RESIZE)


def _over(network: nn.Module, classes: Classes) -> nn.Module:
    return ByCategory(network) if classes == "category" else network


def random_twin() -> SmallExtractor:
    network = EmojiClassifier()
    return SmallExtractor(network, "emoji-random", randomize(network), as_pixels, resize=RESIZE)


@lru_cache(maxsize=1)
def _training_images() -> Tensor:
    return emoji().images.flatten(1)


def nearest_distance(x: Tensor) -> Tensor:
    """(N, 3, 32, 32) in [-1, 1] -> (N,): the Euclidean distance to the nearest training emoji."""
    return torch.cdist(x.flatten(1), _training_images()).min(dim=1).values


def train(seed: int = 0, steps: int = 2500, batch_size: int = 64) -> nn.Module:
    """A newly trained classifier."""
    return fit(EmojiClassifier, emoji(classes="subcategory"), _moved, seed, steps, batch_size)


def _moved(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each drawing scaled, turned, moved, mirrored or not, and tinted, on white."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(x), *shape)).astype(np.float32))

    scale, angle = uniform(*SCALES), uniform(-ANGLE, ANGLE)
    right, down = uniform(-MOVE, MOVE), uniform(-MOVE, MOVE)
    mirror = torch.sign(uniform(-1, 1))
    c, s = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = torch.stack([c * mirror, -s, right], 1), torch.stack([s * mirror, c, down], 1)
    grid = affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return 1 - grid_sample(1 - x, grid, align_corners=False) * uniform(DARKEST, 1, 3, 1, 1)


def accuracies(network: nn.Module, data: EmojiImages) -> dict[str, float]:
    """The share of real emoji whose category, category (other than People & Body) and subcategory the
    classifier predicts. data: with subcategories as labels."""
    as_bytes = torch.from_numpy(images.to_uint8(data.images)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        x = as_pixels(as_bytes)
        categories, subcategories = (_over(network, classes)(x)[1].argmax(1) for classes in CLASS_NAMES)
    number = torch.tensor([CATEGORIES.index(category) for category in CATEGORY_OF.values()])
    truth = number[data.labels]
    others = truth != CATEGORIES.index("People & Body")
    right = {
        "category": categories == truth,
        "category, without People & Body": (categories == truth)[others],
        "subcategory": subcategories == data.labels,
    }
    return {name: float(values.float().mean()) for name, values in right.items()}


def _print_accuracies() -> None:
    network = EmojiClassifier()
    load_shipped(network, WEIGHTS, SHA256)
    held_out = emoji(classes="subcategory", held_out=True)
    for height, width in SIZES:
        found = accuracies(network.eval(), held_out.at(height, width))
        print(f"{width}x{height}: " + "; ".join(f"{name} {share:.1%}" for name, share in found.items()))


if __name__ == "__main__":
    if sys.argv[1:] == ["accuracy"]:
        _print_accuracies()
    else:
        write_shipped(train(), WEIGHTS, emoji(classes="subcategory", held_out=True), torch.float16)
