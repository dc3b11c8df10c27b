"""Every random number, keyed: the draw is a function of (seed, sample index, stream, step) and of nothing
else, so batch size, worker count and rank count change no image and no training step.

    numbers = Philox4x64(key = (seed, index), counter = (., step, stream, .))      (Salmon et al. 2011)

A counter-based generator: any number of the stream is reached directly, there is no state to save, and
two keys or counters never share a block. Drawn on the CPU, so the device does not matter either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a number is for. Values are part of the format: they must not change."""

    SAMPLE_INITIAL = 0
    SAMPLE_STEP = 1
    TRAIN_NOISE = 2
    TRAIN_TIME = 3
    TRAIN_LABEL_DROP = 4
    TRAIN_FLIP = 5
    TRAIN_LATENT = 6
    DATA_ORDER = 7


def generator(seed: int, index: int, stream: Stream, step: int = 0) -> np.random.Generator:
    """The generator of one key. seed and index are taken modulo 2^64."""
    mask = (1 << 64) - 1
    key = np.array([int(seed) & mask, int(index) & mask], dtype=np.uint64)
    counter = np.array([0, step, int(stream), 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(
    seed: int, indices: Sequence[int], shape: tuple[int, ...], stream: Stream, step: int = 0
) -> Tensor:
    """Standard normal (N, *shape) float32, row i keyed by indices[i]."""
    out = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in enumerate(indices):
        generator(seed, index, stream, step).standard_normal(dtype=np.float32, out=out[row])
    return torch.from_numpy(out)


def uniform(seed: int, indices: Sequence[int], stream: Stream, step: int = 0) -> Tensor:
    """Uniform on [0, 1), (N,) float64, entry i keyed by indices[i]."""
    draws = [generator(seed, index, stream, step).random() for index in indices]
    return torch.tensor(draws, dtype=torch.float64)


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the samples in an epoch."""
    return generator(seed, epoch, Stream.DATA_ORDER).permutation(size)


class Noise:
    """The noise of a batch of images for `sample`: image i's depends on (seed, indices[i]) alone."""

    def __init__(
        self, seed: int, indices: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
    ):
        self._draw: Callable[[Stream, int], Tensor] = lambda stream, step: normal(
            seed, indices, shape, stream, step
        ).to(device)

    def initial(self) -> Tensor:
        return self._draw(Stream.SAMPLE_INITIAL, 0)

    def step(self, i: int) -> Tensor:
        return self._draw(Stream.SAMPLE_STEP, i)
