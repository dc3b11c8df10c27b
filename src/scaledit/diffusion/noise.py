"""Keyed random numbers: each draw is a function of (seed, sample index, stream, step) and of nothing else, so
batch size, number of workers and number of ranks change no image and no training step.

    numbers = Philox4x64(key = (seed, index), counter = (., step, stream, .))      (Salmon et al. 2011)

The generator is counter-based: any number of a stream is reached directly, there is no state to save, and two
keys or counters never share a block. Numbers are drawn on the CPU, so they do not depend on the device.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import partial
from typing import NamedTuple

from scaledit import checks
from scaledit.lazy import Tensor, np, torch


class Stream(IntEnum):
    """What a number is used for. The values are part of the file formats and must not change."""

    SAMPLE_INITIAL = 0
    SAMPLE_STEP = 1
    TRAIN = 2
    TRAIN_FLIP = 3
    TRAIN_LATENT = 4
    DATA_ORDER = 5
    SAMPLE_LABEL = 6
    EXTRACTOR = 7
    CROP = 8
    TRAIN_NAMED = 9
    TRAIN_BUCKET = 10


_WORD = (1 << 64) - 1


def generator(seed: int, index: int, stream: Stream, step: int = 0) -> np.random.Generator:
    """The generator of one key. Seeds and indices are taken modulo 2^64, so -1 is 2^64 - 1. Raises UsageError
    if one is not a whole number of at most 64 bits."""
    key = np.array([checks.seed(seed) & _WORD, checks.seed(index, "index") & _WORD], dtype=np.uint64)
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


class TrainingDraws(NamedTuple):
    """The random numbers of N training samples. time, label_drop: uniform on [0, 1), (N,) float64. eps:
    standard normal, (N, *shape) float32."""

    time: Tensor
    label_drop: Tensor
    eps: Tensor


def training_draws(seed: int, positions: Sequence[int], shape: tuple[int, ...]) -> TrainingDraws:
    """The draws of each position in the training stream, from one generator per sample."""
    uniforms, eps = np.empty((len(positions), 2)), np.empty((len(positions), *shape), dtype=np.float32)
    for row, position in enumerate(positions):
        numbers = generator(seed, position, Stream.TRAIN)
        numbers.random(out=uniforms[row])
        numbers.standard_normal(dtype=np.float32, out=eps[row])
    time, label_drop = torch.from_numpy(uniforms).unbind(1)
    return TrainingDraws(time, label_drop, torch.from_numpy(eps))


DRAW_KINDS = ("uniform", "normal")


def named_draws(
    seed: int, positions: Sequence[int], shape: tuple[int, ...], kinds: Mapping[str, str]
) -> dict[str, Tensor]:
    """Additional random numbers for N samples, each keyed by (seed, position in the training stream, name).

    kinds: {name: kind}; "uniform" on [0, 1) is (N,) float64, standard "normal" is (N, *shape) float32. The
    counter's step is the CRC-32 of the name. Raises KeyError for any other kind.
    """
    draw: dict[str, Callable[[Stream, int], Tensor]] = {
        "uniform": partial(uniform, seed, positions),
        "normal": partial(normal, seed, positions, shape),
    }
    return {name: draw[kind](Stream.TRAIN_NAMED, zlib.crc32(name.encode())) for name, kind in kinds.items()}


def permutation(seed: int, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """The order of the samples in an epoch. stream: of the several that a set with buckets has."""
    return generator(seed, epoch, Stream.DATA_ORDER, stream).permutation(size)


class Noise:
    """The noise of a batch of images for `sample`: that of image i depends on (seed, indices[i]) only."""

    def __init__(
        self, seed: int, indices: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
    ):
        self._key, self.device = (seed, indices, shape), device

    def initial(self) -> Tensor:
        return normal(*self._key, Stream.SAMPLE_INITIAL).to(self.device)

    def step(self, i: int) -> Tensor:
        return normal(*self._key, Stream.SAMPLE_STEP, i).to(self.device)


class OfficialNoise:
    """The noise of the official sample.py for one batch: torch.manual_seed(seed), then numbers in its order.

    z (N, C, H, W) is drawn once. With guidance (`doubled`) both halves of a doubled batch start at the same
    z, and every step draws for the doubled batch, of which the first half is used. The draw of the last step
    is multiplied by zero and may be skipped. Numbers are drawn on `device`: a GPU gives other numbers for the
    same seed.
    """

    def __init__(
        self,
        seed: int,
        n: int,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        doubled: bool = True,
    ):
        self.seed, self.n, self.shape, self.doubled = checks.seed(seed), n, shape, doubled
        self.generator = torch.Generator(device)
        self.next = 0

    def initial(self) -> Tensor:
        self.generator.manual_seed(self.seed)
        self.next = 0
        return self._draw(self.n)

    def step(self, i: int) -> Tensor:
        """Raises ValueError if i is not the next step, since the generator cannot skip or go back."""
        if i != self.next:
            raise ValueError(f"official noise must be drawn in order: step {self.next} comes next, not {i}")
        self.next += 1
        return self._draw(2 * self.n if self.doubled else self.n)[: self.n]

    def _draw(self, n: int) -> Tensor:
        return torch.randn((n, *self.shape), generator=self.generator, device=self.generator.device)
