"""OpenMoji's pictures of the emoji that have an English name, drawn at any size, as a training set.

    emoji(size=(32, 32), classes="category")       3,542 for training
    emoji(..., held_out=True)                      411 of other subjects

The images are vector graphics, so every size and shape shows the truth. They are by OpenMoji, under CC BY-SA
4.0; wherever they go, `attribution("emoji")` goes too (scaledit.data.datasets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scaledit import machine
from scaledit.data.emoji import drawing
from scaledit.data.emoji.catalog import Picture, pictures
from scaledit.data.emoji.classes import CLASS_NAMES, Classes
from scaledit.data.sets import Images

SIDE = 32
"""Pixels, unless another size is asked for."""
BYTES_OF_A_VALUE = 5
"""A byte as it was drawn, and a float32."""


@dataclass(frozen=True)
class EmojiImages(Images):
    """Drawn emoji in memory. pictures: what each image shows."""

    pictures: tuple[Picture, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """The English name of each image: "farmer medium skin tone"."""
        return tuple(picture.name for picture in self.pictures)

    def draw(self, index: int, height: int, width: int) -> np.ndarray:
        """Image `index` drawn at another size, (height, width, 3) uint8: as large as fits, centered on white.
        Equal to that image of `at`."""
        return drawing.draw(self.pictures[index], height, width)

    def at(self, height: int, width: int) -> EmojiImages:
        """The same images with the same labels at another size, (N, 3, height, width)."""
        chosen = frozenset(picture.codes for picture in self.pictures)
        rows = np.array([picture.codes in chosen for picture in pictures()])
        return replace(self, images=_scaled(drawing.drawn(height, width), rows))

    def members(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Every emoji can be drawn at every size."""


def emoji(
    size: tuple[int, int] = (SIDE, SIDE),
    classes: Classes = "category",
    *,
    held_out: bool = False,
    flip: bool = False,
) -> EmojiImages:
    """The emoji of one split, at size (height, width): (N, 3, height, width) in [-1, 1], in the order of
    `pictures`.

    classes: what the labels are, ten categories or their subcategories. Raises UsageError if a package is
    missing or the images exceed the memory.
    """
    every = pictures()
    rows = np.array([picture.held_out == held_out for picture in every])
    check_memory(*size, len(every))
    chosen = tuple(picture for picture in every if picture.held_out == held_out)
    number = {name: i for i, name in enumerate(CLASS_NAMES[classes])}
    labels = torch.tensor([number[getattr(picture, classes)] for picture in chosen])
    return EmojiImages(_scaled(drawing.drawn(*size), rows), labels, CLASS_NAMES[classes], flip, chosen)


def check_memory(height: int, width: int, count: int) -> None:
    """Raises UsageError if `count` emoji of this size, as bytes and as float32, exceed the memory."""
    need = BYTES_OF_A_VALUE * 3 * height * width * count
    machine.check_memory(need, f"{count:,} emoji of {width}x{height} pixels", "set a smaller data.image_size")


def _scaled(pixels: np.ndarray, rows: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> the chosen rows, (n, 3, H, W) float32 in [-1, 1]."""
    return (torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
