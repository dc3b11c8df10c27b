"""The nearest training image of a sample: whether a model repeats what it was trained on.

    r(x) = x averaged to at most 32x32 pixels             d(a, b) = root mean square of r(a) - r(b), of 0..255
    nearest(x) = argmin over training images t, and mirrored ones if training mirrors, of d(x, t)

The hint of memorization: the share of samples that are nearer to a training image than half of the held-out
images are. It is about one half for a model that generates images as new as those. Smooth images are near to
many, so look at the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from scaledit.callbacks import Progress
from scaledit.data.holdout import evenly
from scaledit.evaluation.own import DECODED, OwnImages, Readable
from scaledit.evaluation.samples import Batch

SIDE = 32
MOST = 5000
"""Training images that are compared: 60 MB."""
MOST_DECODED = 1000
"""Of latents, which must be decoded: as much work as evaluating a thousand samples."""


class Nearest(NamedTuple):
    """number (N,) int64: of the nearest training image. mirrored (N,) bool: whether it is nearest when it is
    mirrored. distance (N,) float64: in levels of 0..255."""

    number: np.ndarray
    mirrored: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """images: those that are compared, of `all`. made: how they become pixels. small: (N, d) float32,
    reduced. flip: compare mirrored ones too."""

    images: Readable
    all: int
    made: str
    small: Tensor
    flip: bool

    @classmethod
    def of(cls, own: OwnImages, progress: Progress | None = None) -> TrainingImages:
        """The training images of a run's own data, at most MOST or MOST_DECODED, evenly over the classes."""
        labels, most = own.training.labels, MOST_DECODED if own.training_made == DECODED else MOST
        images = own.training.subset(evenly(labels, most))
        small = reduced_batches(images.samples().batches(), len(images), progress)
        return cls(images, len(labels), own.training_made, small, own.flip)

    def nearest(self, images: np.ndarray) -> Nearest:
        """The nearest training image of each of (N, H, W, 3) uint8."""
        straight = self._nearest(reduced(images))
        if not self.flip:
            return straight
        mirrored = self._nearest(reduced(images[:, :, ::-1]))
        better = mirrored.distance < straight.distance
        return Nearest(
            np.where(better, mirrored.number, straight.number),
            better,
            np.where(better, mirrored.distance, straight.distance),
        )

    def _nearest(self, x: Tensor) -> Nearest:
        number = torch.cdist(x, self.small).argmin(1)
        # Again and exactly: cdist rounds, so that copies would have a small distance.
        distance = (x - self.small[number]).double().square().mean(1).sqrt()
        return Nearest(number.numpy(), np.zeros(len(x), bool), distance.numpy())

    def shown(self, nearest: Nearest) -> np.ndarray:
        """The nearest training images themselves, mirrored as they are nearest, (N, H, W, 3) uint8."""
        images = self.images.read(nearest.number)
        return np.where(nearest.mirrored[:, None, None, None], images[:, :, ::-1], images)


def reduced(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, d) float32, averaged to at most SIDE x SIDE pixels."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    size = min(SIDE, x.shape[2]), min(SIDE, x.shape[3])
    return adaptive_avg_pool2d(x, size).flatten(1)


def reduced_batches(batches: Iterable[Batch], n: int, progress: Progress | None = None) -> Tensor:
    rows, done = [], 0
    for batch in batches:
        rows.append(reduced(batch.images))
        done += len(batch.images)
        if progress is not None:
            progress(done, n)
    return torch.cat(rows)


def share_nearer(samples: np.ndarray, held_out: np.ndarray) -> float:
    """The share of samples whose distance is below the median of the held-out images' distances."""
    return float((samples < np.median(held_out)).mean())
