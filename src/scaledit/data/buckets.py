"""Mixed sizes in training: all images of a batch have one of several sizes, its bucket (data.buckets).

    a round of M batches holds bucket b  m_b times,  m_b / M = its share of the images
    the order in a round is keyed by (seed, round)

    vectors (emoji)    every image in every bucket      batch k reads the next B images of the stream
    photographs        each image in the buckets of     batch k reads the next B images of its bucket's own
                       the nearest aspect ratio         stream, in which each comes once an epoch

An image belongs to the bucket whose log(width / height) is nearest to its own, or to all of them if several
have that ratio (NovelAI 2022; Podell et al. 2023, "SDXL", section 2.3). Shares count an image once, so that
each is seen equally often. The bucket of a batch is a function of the seed and of the batch's place in the
stream: ranks, accumulation, workers and resuming change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from scaledit import checks
from scaledit.data.order import samples_at
from scaledit.data.sets import AnySize, TrainingSet
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import UsageError

ROUND = 64
"""Batches of a round for each bucket."""
SAME = 1e-9
"""Aspect ratios, as logarithms, that differ less are equal."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Drawn(NamedTuple):
    """The bucket of a batch, and the indices of some of its images in the set of that bucket."""

    bucket: int
    indices: np.ndarray


@dataclass(frozen=True)
class Buckets:
    """sizes: of the images. sets: the training set at each size. members: the indices of each bucket's images
    in its set; None if every image is in every bucket. counts: m_b, batches of each bucket in a round."""

    sizes: tuple[Size, ...]
    sets: tuple[TrainingSet, ...]
    members: tuple[np.ndarray, ...] | None
    counts: tuple[int, ...]

    def bucket(self, batch: int, seed: int) -> tuple[int, int]:
        """The bucket of a batch, given its place in the stream, and how many batches of it came before."""
        number, place = divmod(batch, sum(self.counts))
        order = _order(seed, number, self.counts)
        bucket = int(order[place])
        return bucket, number * self.counts[bucket] + int((order[:place] == bucket).sum())

    def drawn(self, positions: range, offset: int, batch_size: int, seed: int) -> Drawn:
        """What is at some positions of the stream, which lie in one batch. offset: of the first position in
        its batch. After a change of the batch size, each bucket's own stream continues where it would be if
        the size had always been the new one."""
        batch = (positions.start - offset) // batch_size
        bucket, before = self.bucket(batch, seed)
        if self.members is None:
            return Drawn(bucket, samples_at(positions, len(self.sets[bucket]), seed))
        members, first = self.members[bucket], before * batch_size + offset
        own = range(first, first + len(positions))
        return Drawn(bucket, members[samples_at(own, len(members), seed, stream=1 + bucket)])


@lru_cache(maxsize=4)
def _order(seed: int, number: int, counts: tuple[int, ...]) -> np.ndarray:
    """The buckets of the batches of a round."""
    batches = np.repeat(np.arange(len(counts)), counts)
    return generator(seed, number, Stream.TRAIN_BUCKET).permutation(batches)


def bucketed(dataset: TrainingSet, sizes: Sequence[Size]) -> Buckets:
    """`dataset` in buckets of these sizes. Raises UsageError if it has one size only or a bucket stays empty,
    RunError naming an image that cannot be read."""
    if not isinstance(dataset, AnySize):
        raise UsageError(
            "data.buckets needs images that can be had at several sizes: emoji, images in files, or latents "
            "that scaledit encode --buckets wrote; leave data.buckets out"
        )
    sizes = tuple(sizes)
    sets = tuple(dataset.at(*size) for size in sizes)
    found = dataset.members(sizes)
    if found is None:
        return Buckets(sizes, sets, None, (ROUND,) * len(sizes))
    for size, members in zip(sizes, found, strict=True):
        if not len(members):
            raise UsageError(
                f"data.buckets has {checks.size_in_words(size)}, but no image has an aspect ratio that is "
                "nearest to it; leave this size out"
            )
    alike = [sum(abs(_ratio(one) - _ratio(other)) < SAME for other in sizes) for one in sizes]
    shares = np.array([len(members) / n for members, n in zip(found, alike, strict=True)])
    return Buckets(sizes, sets, tuple(found), _apportioned(shares / shares.sum(), ROUND * len(sizes)))


def _apportioned(shares: np.ndarray, total: int) -> tuple[int, ...]:
    """Whole numbers of at least 1 in proportion to the shares, by largest remainders."""
    exact = shares * total
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    for bucket in np.argsort(-(exact - counts), kind="stable")[: max(0, total - int(counts.sum()))]:
        counts[bucket] += 1
    return tuple(counts.tolist())


def nearest(ratios: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
    """The images of each bucket. ratios: log(width / height) of each image; nan is taken for a square."""
    distances = np.abs(np.nan_to_num(ratios)[:, None] - np.array([_ratio(size) for size in sizes]))
    least = distances.min(axis=1, keepdims=True)
    return [np.flatnonzero(column) for column in (distances < least + SAME).T]


def _ratio(size: Size) -> float:
    return float(np.log(size[1] / size[0]))
