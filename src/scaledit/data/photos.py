"""Crops of twelve real photographs that come with scikit-image's wheel, one class per photograph.

    photograph --BICUBIC--> shorter side S --> | training crops                | held-out crops |
                                               | 64x64, left of the line       | in 72 columns  |

Every crop lies entirely on one side of the line, so training never sees a pixel of the held-out region. The
position of crop i of a class is keyed by (SEED, i) and is the same on every machine. The docstring of
scikit-image's function states the author and license of a photograph (skimage.data.chelsea.__doc__).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from scaledit.data.sets import Images
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import UsageError

SIDE = 64
HELD_OUT_WIDTH = 72
"""Columns at one edge of each photograph that no training crop touches."""
TRAINING_CROPS, HELD_OUT_CROPS, FRESH_CROPS = 512, 64, 16
"""Crops per class."""
SEED = 0


@dataclass(frozen=True)
class Photograph:
    """A class. function: in skimage.data. shorter_side: in pixels, after scaling. held_out: the edge whose
    columns are held out."""

    name: str
    function: str
    shorter_side: int
    held_out: Literal["left", "right"] = "right"


# The sizes let a crop show the subject. The held-out region should look like the rest, so it is at the left
# of chelsea and coffee, whose right edges show blurred cloth and bare wood.
PHOTOGRAPHS = (
    Photograph("astronaut", "astronaut", 192),
    Photograph("brick", "brick", 256),
    Photograph("chelsea", "chelsea", 192, "left"),
    Photograph("coffee", "coffee", 192, "left"),
    Photograph("coins", "coins", 192),
    Photograph("gravel", "gravel", 256),
    Photograph("hubble_deep_field", "hubble_deep_field", 320),
    Photograph("immunohistochemistry", "immunohistochemistry", 256),
    Photograph("motorcycle", "stereo_motorcycle", 192),
    Photograph("page", "page", 191),
    Photograph("retina", "retina", 192),
    Photograph("rocket", "rocket", 192),
)
CLASS_NAMES = tuple(photograph.name for photograph in PHOTOGRAPHS)


def fresh_photos() -> Images:
    """12 x 16 further crops of the training regions that are not in the training list. Their distance to it
    is that of a perfect model."""
    images, labels = _crops(False, TRAINING_CROPS, FRESH_CROPS)
    return Images(images, labels, CLASS_NAMES)


def photos(*, held_out: bool = False, flip: bool = False) -> Images:
    """The crops of all classes, 12 x 512 for training or 12 x 64 held out: (N, 3, 64, 64) in [-1, 1], sorted
    by class. Gray photographs have three equal channels. Raises UsageError if scikit-image is missing."""
    images, labels = _crops(held_out, 0, HELD_OUT_CROPS if held_out else TRAINING_CROPS)
    return Images(images, labels, CLASS_NAMES, flip)


@lru_cache(maxsize=3)
def _crops(held_out: bool, first: int, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = range(first, first + each)
    out = np.empty((len(PHOTOGRAPHS) * each, SIDE, SIDE, 3), np.uint8)
    for label, photograph in enumerate(PHOTOGRAPHS):
        pixels = load(photograph)
        for i, (top, left) in enumerate(corners(label, pixels.shape[1], pixels.shape[0], held_out, numbers)):
            out[label * each + i] = pixels[top : top + SIDE, left : left + SIDE]
    images = torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(), torch.arange(len(PHOTOGRAPHS)).repeat_interleave(each)


def corners(label: int, width: int, height: int, held_out: bool, numbers: range) -> np.ndarray:
    """(N, 2) int64: the upper left corner (top, left) of each numbered crop of a class."""
    at_right = PHOTOGRAPHS[label].held_out == "right"
    columns = HELD_OUT_WIDTH if held_out else width - HELD_OUT_WIDTH
    first = width - columns if held_out == at_right else 0
    draws = [generator(SEED, i, Stream.CROP, 2 * label + held_out).random(2) for i in numbers]
    choices = np.array([height - SIDE + 1, columns - SIDE + 1])
    return np.array([0, first]) + np.floor(np.array(draws) * choices).astype(np.int64)


def load(photograph: Photograph) -> np.ndarray:
    """The scaled photograph, (H, W, 3) uint8."""
    from PIL import Image

    try:
        import skimage.data
    except ImportError:
        raise UsageError(
            "the photos come with scikit-image, which is not installed; install it with: pip install "
            '"scaledit[photos]"'
        ) from None
    pixels = getattr(skimage.data, photograph.function)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # the left one of a stereo pair
    image = Image.fromarray(pixels).convert("RGB")
    scale = photograph.shorter_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
