"""Image files as a training set: read, decoded and cropped on demand.

indices --read, in threads--> (H, W, 3) uint8 or BadImage --> x_0 = pixels / 127.5 - 1
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from scaledit.data.background import DEFAULT, DROP, background_color
from scaledit.data.decode import BadImage, crop, decode, header
from scaledit.data.sets import Batch, Images, flipped_at
from scaledit.data.sources import Source
from scaledit.errors import RunError

KEPT = 1 << 28
"""Bytes per process: the crops of a set that fits are made once, not at each step."""


@dataclass(frozen=True)
class ImageFiles:
    """A training set of a Source's images. side: of the square in pixels, or (height, width). threads: for
    reading and decoding; use only one before a process is forked (training reads in worker processes
    instead). behind: the color behind transparent images, one of background.BACKGROUNDS. Raises UsageError if
    it is none of them."""

    source: Source
    side: int | tuple[int, int]
    flip: bool = False
    threads: int = 1
    behind: str = DEFAULT

    def __post_init__(self) -> None:
        background_color(self.behind)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def names(self) -> Sequence[str]:
        return self.source.names

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.source.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = self.side if isinstance(self.side, tuple) else (self.side, self.side)
        return 3, height, width

    def at(self, height: int, width: int) -> ImageFiles:
        """The same images scaled and cropped to another size."""
        return replace(self, side=height if height == width else (height, width))

    @cached_property
    def ratios(self) -> np.ndarray:
        """log(width / height) of each image, (N,); nan if it cannot be read. Reads every file once."""
        return np.array([self._ratio(i) for i in range(len(self))])

    def _ratio(self, i: int) -> float:
        with suppress(BadImage, OSError):
            known = header(self.source.read(i), self.names[i])
            return math.log(known.width / known.height)
        return math.nan

    def members(self, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """The images whose aspect ratio is nearest to each size."""
        from scaledit.data.buckets import nearest

        return nearest(self.ratios, sizes)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def background(self) -> str:
        """The color behind transparent images, "#rrggbb", or "drop" if the alpha channel is ignored."""
        color = background_color(self.behind)
        return DROP if color is None else "#{:02x}{:02x}{:02x}".format(*color)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know before training: the split that is read, files that are not used."""
        return self.source.remarks()

    def read(self, indices: Sequence[int]) -> list[Tensor | BadImage]:
        """(3, H, W) float32 in [-1, 1] for each index, or the reason why the image cannot be used."""
        if self.threads == 1:
            return [self._read(i) for i in indices]
        return list(_pool(self.threads).map(self._read, indices))

    @cached_property
    def _kept(self) -> dict[int, np.ndarray] | None:
        """The crops that this process has made, (H, W, 3) uint8; None if not all of the set would fit."""
        return {} if math.prod(self.shape) * len(self) <= KEPT else None

    def _read(self, i: int, keep: bool = False) -> Tensor | BadImage:
        try:
            pixels = self._kept_pixels(i) if keep and self._kept is not None else self._pixels(i)
        except BadImage as error:
            return error
        except OSError as error:
            return BadImage(f"{self.names[i]} cannot be read: {error.strerror or error}")
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def _kept_pixels(self, i: int) -> np.ndarray:
        assert self._kept is not None
        if i not in self._kept:
            self._kept[i] = self._pixels(i)
        return self._kept[i]

    def _pixels(self, i: int) -> np.ndarray:
        color = background_color(self.behind)
        return crop(decode(self.source.read(i), self.names[i], color), *self.shape[1:])

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        """Raises RunError naming an image that cannot be used."""
        images = []
        for i in indices.tolist():
            image = self._read(i, keep=True)
            if isinstance(image, BadImage):
                raise RunError(f"{image}; scaledit data inspect {self.source.path} lists all such images")
            images.append(image)
        x0 = torch.stack(images)
        return Batch(
            flipped_at(x0, positions, seed) if self.flip else x0, self.labels[torch.from_numpy(indices)]
        )


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scaledit-read")


class BuiltIn:
    """A built-in set, read like image files. Gray images get three equal channels."""

    background = DROP

    def __init__(self, name: str, images: Images):
        _, h, w = images.shape
        self.shape = (3, h, w)
        self.names = [f"{name} {i}" for i in range(len(images))]
        self.labels, self.class_names = images.labels, images.class_names
        self.fingerprint = hashlib.sha256(images.images.numpy().tobytes()).hexdigest()
        self._pixels = images.images

    def read(self, indices: Sequence[int]) -> list[Tensor | BadImage]:
        return [self._pixels[i].expand(self.shape) for i in indices]


Readable = ImageFiles | BuiltIn
"""Labelled images that `scaledit encode` can read one by one."""
