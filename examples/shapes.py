"""A data set of one's own: squares and circles of 8x8 pixels.

    scaledit train digits data.name=shapes:Shapes data.n=512 model.num_classes=2

The recipe's reference (evaluate.reference) is of digits: evaluate.every=0 leaves it out in training.
"""

from dataclasses import dataclass

import torch

from scaledit.data.datasets import DataSet
from scaledit.data.sets import Images
from scaledit.part import field

SIDE = 8


@dataclass(frozen=True)
class Shapes(DataSet, name="shapes"):
    """A white square or circle on black, of a random size and place."""

    in_memory = True
    channels = 1

    n: int = field(1024, ge=2, doc="images")
    seed: int = field(0, doc="of sizes and places")

    def open(self):
        places = torch.rand(self.n, 3, 1, 1, generator=torch.Generator().manual_seed(self.seed))
        radius, centre = 1.5 + 1.5 * places[:, 2], 3 + 2 * places[:, :2]
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        dy, dx = (rows - centre[:, 0]).abs(), (columns - centre[:, 1]).abs()
        label = torch.arange(self.n) % 2
        distance = torch.where(label[:, None, None] == 0, torch.maximum(dy, dx), (dy**2 + dx**2).sqrt())
        images = torch.where(distance <= radius, 1.0, -1.0).unsqueeze(1)
        return Images(images, label, ("square", "circle"))
