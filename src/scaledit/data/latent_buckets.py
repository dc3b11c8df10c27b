"""Encoded images of several sizes: a folder of caches, one for each bucket (scaledit encode --buckets).

    LATENTS/buckets.json             the sizes, and whether every image is in every bucket
    LATENTS/32x48/index.json, ...    an ordinary cache (scaledit.data.latents) of the images of that bucket

Each of these folders is complete in itself: `data.path=LATENTS/32x48` reads one of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import checks
from scaledit.data.latents import Latents
from scaledit.data.sets import Batch
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import read_sealed, sealed

BUCKETS = "buckets.json"
FORMAT = 1
AGAIN = "run scaledit encode again"


def folder_of(folder: Path, size: tuple[int, int]) -> Path:
    """Where the images of one bucket are."""
    return folder / checks.size_in_words(size)


def write(folder: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Records the sizes of a folder. Raises UsageError if it holds others."""
    words = [checks.size_in_words(size) for size in sizes]
    if (folder / BUCKETS).is_file() and (before := read(folder)) != tuple(sizes):
        raise UsageError(
            f"{folder} holds the sizes {', '.join(map(checks.size_in_words, before))}; encode others into "
            "another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_bytes(folder / BUCKETS, sealed({"format": FORMAT, "buckets": words}))


def read(folder: Path) -> tuple[tuple[int, int], ...]:
    """The sizes of a folder. Raises RunError if their record is corrupt."""
    path, what = folder / BUCKETS, "a record of encoded sizes"
    with reading(path, what, AGAIN):
        value, intact = read_sealed(path, what, AGAIN)
        words: Any = value.get("buckets")
        if not intact or value.get("format") != FORMAT or not isinstance(words, list) or not words:
            raise RunError(f"{path} does not match its SHA-256; {AGAIN}")
        try:
            return checks.image_sizes(words, "it")
        except UsageError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class BucketLatents(Latents):
    """Caches of several sizes. As a cache it is the first of them; `at` gives each."""

    caches: tuple[Latents, ...] = ()

    @classmethod
    def opened(cls, folder: Path, *, flip: bool) -> BucketLatents:
        """Raises as `Latents.open`, and UsageError if the caches are of different encoders or classes."""
        caches = tuple(Latents.open(folder_of(folder, size), flip=flip) for size in read(folder))
        first = caches[0]
        for one in caches:
            if (one.index.autoencoder, one.class_names) != (first.index.autoencoder, first.class_names):
                raise UsageError(
                    f"{one.folder} was not encoded together with {first.folder}: its autoencoder or its "
                    f"classes are others; {AGAIN}"
                )
        return cls(folder, first.index, first.tables, first.labels, flip, caches)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the images of each cache."""
        return tuple(one.index.image_size for one in self.caches)

    def __len__(self) -> int:
        """All encoded images; one that is in several buckets counts in each."""
        return sum(map(len, self.caches))

    def verify(self) -> Iterator[tuple[int, int]]:
        total, before = sum(shard.size for one in self.caches for shard in one.index.shards), 0
        for one in self.caches:
            done = 0
            for done, _ in one.verify():
                yield before + done, total
            before += done

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        """Raises UsageError: a batch has one size."""
        sizes = ", ".join(f'"{checks.size_in_words(size)}"' for size in self.sizes)
        raise UsageError(f"{self.folder} holds latents of several sizes; set data.buckets=[{sizes}]")

    def at(self, height: int, width: int) -> Latents:
        """The latents of one bucket, from images of this size in pixels."""
        for one in self.caches:
            if one.index.image_size == (height, width):
                return one
        raise UsageError(
            f"{self.folder} has no latents of {height}x{width}; it has "
            f"{', '.join(map(checks.size_in_words, self.sizes))}"
        )

    def members(self, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """The images were divided among the buckets when they were encoded."""
        return [np.arange(len(self.at(*size))) for size in sizes]
