"""Real photographs without a download: twelve that come inside scikit-image's wheel, one a class.

    photograph --BICUBIC--> shorter side S --> | training crops                | held-out crops |
                                               | 64x64, left of the line       | in 72 columns  |

A crop lies wholly on one side of the line, so training sees no pixel of the held-out region. Where crop i of
a class lies is keyed by (SEED, i): the same list on every machine. Whom each photograph is by, and its terms,
is in the docstring of scikit-image's function (skimage.data.chelsea.__doc__).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from scaledit.data.sets import Images
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import UsageError

SIDE = 64
HELD_OUT_WIDTH = 72
"""Columns at one edge of each photograph that training crops never touch."""
TRAINING_CROPS, HELD_OUT_CROPS, FRESH_CROPS = 512, 64, 16
"""A class."""
SEED = 0


@dataclass(frozen=True)
class Photograph:
    """A class: scikit-image's function in skimage.data, the shorter side it is scaled to, and the edge whose
    columns are held out."""

    name: str
    function: str
    shorter_side: int
    held_out: Literal["left", "right"] = "right"


# So that a crop shows what the photograph is of. What is held out should look like the rest: at the right of
# chelsea and coffee are blurred cloth and bare wood.
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
    """More crops of the regions that are trained on, 12 x 16, none of them in the training list: at which
    distance from it lies what is of the same kind."""
    images, labels = _crops(False, TRAINING_CROPS, FRESH_CROPS)
    return Images(images, labels, CLASS_NAMES)


def photos(*, held_out: bool = False, flip: bool = False) -> Images:
    """The crops of all classes: 12 x 512 to train on or 12 x 64 held out, (N, 3, 64, 64) in [-1, 1].

    Classes follow each other: crop i is of class i // (crops a class). Grey photographs have three equal
    channels. Raises UsageError with what to install where scikit-image is missing.
    """
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
    """(N, 2) int64: the upper left corner (top, left) of the numbered crops of a class."""
    at_right = PHOTOGRAPHS[label].held_out == "right"
    columns = HELD_OUT_WIDTH if held_out else width - HELD_OUT_WIDTH
    first = width - columns if held_out == at_right else 0
    draws = [generator(SEED, i, Stream.CROP, 2 * label + held_out).random(2) for i in numbers]
    choices = np.array([height - SIDE + 1, columns - SIDE + 1])
    return np.array([0, first]) + np.floor(np.array(draws) * choices).astype(np.int64)


def load(photograph: Photograph) -> np.ndarray:
    """The scaled photograph, (H, W, 3) uint8."""
    from PIL import Image

    pixels = getattr(_skimage_data(), photograph.function)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # of a stereo pair, the left one
    image = Image.fromarray(pixels).convert("RGB")
    scale = photograph.shorter_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _skimage_data() -> Any:
    try:
        import skimage.data
    except ImportError:
        raise UsageError(
            'the photographs come with scikit-image, which is not installed: pip install "scaledit[photos]"'
        ) from None
    return skimage.data
