"""Training sets. A set turns (indices, positions) into images or latents, and labels. Its random numbers
(flips, latents) are keyed by the position in the training stream, never by the batch.

    x_0 = flip(image)                                        digits and other images, in [-1, 1]
    x_0 = scale (mean + exp(logvar / 2) eps)                 latents: drawn, not the mode (paper, section 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scaledit.diffusion.noise import Stream, uniform
from scaledit.errors import UsageError

DIGITS_SIDE = 8
DIGITS_HELD_OUT_EVERY = 5
"""Every fifth digit in scikit-learn's order is held out: 1,438 for training, 359 for testing."""


class Batch(NamedTuple):
    """x0 (N, C, H, W) float32; y (N,) int64."""

    x0: Tensor
    y: Tensor


class TrainingSet(Protocol):
    """Data that a model can be trained on."""

    def __len__(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        ...

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch: ...


@runtime_checkable
class AnySize(TrainingSet, Protocol):
    """A set whose samples can be had at several sizes."""

    def at(self, height: int, width: int) -> TrainingSet:
        """The samples at a size in pixels (of the images, also for latents). Raises UsageError for a size
        that it does not have."""
        ...

    def members(self, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray] | None:
        """Which samples of the set at each of these sizes belong to it (see scaledit.data.buckets); None if
        all do, and indices and labels are the same at every size."""
        ...


@dataclass(frozen=True)
class Images:
    """Images in memory: (N, C, H, W) float32 in [-1, 1], labels (N,) int64."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    flip: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.images.shape
        return c, h, w

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        chosen = torch.from_numpy(indices)
        x0 = self.images[chosen]
        return Batch(flipped_at(x0, positions, seed) if self.flip else x0, self.labels[chosen])


def flips(positions: range, seed: int) -> Tensor:
    """(N,) bool: whether the image at each position of the training stream is mirrored."""
    return uniform(seed, positions, Stream.TRAIN_FLIP) < 0.5


def flipped_at(x0: Tensor, positions: range, seed: int) -> Tensor:
    """(N, C, H, W) with the images at mirrored positions flipped left to right."""
    return torch.where(flips(positions, seed)[:, None, None, None], x0.flip(-1), x0)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 64) in 0..16 and (1797,), from the file that scikit-learn's load_digits reads, without the
    second or two that importing scikit-learn takes."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None  # a dependency
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1], rows[:, -1]


def digits(*, held_out: bool = False, flip: bool = False) -> Images:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998), 8x8 pixels, gray 0..16 mapped to
    [-1, 1]. held_out: the test digits instead of the training digits."""
    images, labels = _load_digits()
    is_held_out = np.arange(len(labels)) % DIGITS_HELD_OUT_EVERY == DIGITS_HELD_OUT_EVERY - 1
    chosen = is_held_out if held_out else ~is_held_out
    x = (images[chosen].reshape(-1, 1, DIGITS_SIDE, DIGITS_SIDE) / 8 - 1).astype(np.float32)
    names = tuple(str(digit) for digit in range(10))
    return Images(torch.from_numpy(x), torch.from_numpy(labels[chosen].astype(np.int64)), names, flip)


def check_fits(
    dataset: TrainingSet,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    may_have_more: bool = False,
    any_size: bool = False,
) -> None:
    """Raises UsageError if the samples or the labels of a set do not fit a model. may_have_more: the model
    may have classes without data, as in a run that began so and is resumed. any_size: only channels count."""
    if dataset.shape[0 if any_size else slice(None)] != shape[0 if any_size else slice(None)]:
        raise UsageError(
            f"the data's samples are {'x'.join(map(str, dataset.shape))} (channels x height x width), but "
            f"the model accepts {'x'.join(map(str, shape))}; change model.in_channels and model.input_size"
        )
    classes = len(dataset.class_names)
    if classes > num_classes or (classes < num_classes and not may_have_more):
        never = "" if classes > num_classes else "; the others would never be trained"
        raise UsageError(
            f"the data has {classes} {'class' if classes == 1 else 'classes'}, but the "
            f"model has {num_classes}{never}; set model.num_classes={classes}"
        )
