"""A data set of your own: images of a horizontal or a vertical bar.

scaledit train digits data.name=my_sets:Bars data.n=64 model.num_classes=2 evaluate.reference=my_sets:Bars
"""

from dataclasses import dataclass

import torch

from scaledit.data.datasets import DataSet
from scaledit.data.sets import Images
from scaledit.part import field


@dataclass(frozen=True)
class Bars(DataSet):
    """n images of 8x8 pixels: class 0 has horizontal bars, class 1 vertical ones."""

    in_memory = True
    channels = 1
    extractors = ("digits",)

    n: int = field(32, ge=2, doc="number of images")
    flip: bool = field(True, doc="mirror half of the images, chosen at random")

    def made(self, first: int) -> Images:
        images = -torch.ones(self.n, 1, 8, 8)
        for i in range(self.n):
            at = (first + i // 2) % 8
            (images[i, 0, at] if i % 2 == 0 else images[i, 0, :, at]).fill_(1)
        return Images(images, torch.arange(self.n) % 2, ("lying", "standing"), self.flip)

    def open(self) -> Images:
        return self.made(0)

    def held_out(self) -> Images:
        return self.made(3)
