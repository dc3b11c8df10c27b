"""Images read from where they lie, decoded and cropped when they are wanted.

indices --read, in threads--> (S, S, 3) uint8, or what is wrong --> x_0 = pixels / 127.5 - 1
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scaledit.data.background import DEFAULT, DROP, background_color
from scaledit.data.decode import BadImage, crop, decode
from scaledit.data.sets import Batch, Images, flipped_at
from scaledit.data.sources import Source
from scaledit.errors import RunError


class Readable(Protocol):
    """Images that can be read one by one, as `scaledit encode` wants them. names: of the images."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def background(self) -> str:
        """What is seen where an image is transparent: "#rrggbb"; "drop" where no alpha is looked at."""
        ...

    def read(self, indices: Sequence[int]) -> list[Tensor | BadImage]:
        """(3, S, S) float32 in [-1, 1] of each index, or what is wrong with it."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """A training set of a Source's images at side x side. threads: that read and decode; more than one must
    not be used before a process is forked (training has processes instead). behind: a word of
    background.BACKGROUNDS, what is seen where an image is transparent."""

    source: Source
    side: int
    flip: bool = False
    threads: int = 1
    behind: str = DEFAULT

    def __post_init__(self) -> None:
        background_color(self.behind)  # a wrong word is refused now

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
        return 3, self.side, self.side

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def background(self) -> str:
        color = background_color(self.behind)
        return DROP if color is None else "#{:02x}{:02x}{:02x}".format(*color)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person who trains on them should know: which split is read, which files are not."""
        return self.source.remarks()

    def read(self, indices: Sequence[int]) -> list[Tensor | BadImage]:
        if self.threads == 1:
            return [self._read(i) for i in indices]
        return list(_pool(self.threads).map(self._read, indices))

    def _read(self, i: int) -> Tensor | BadImage:
        try:
            color = background_color(self.behind)
            pixels = crop(decode(self.source.read(i), self.names[i], color), self.side)
        except BadImage as error:
            return error
        except OSError as error:
            return BadImage(f"{self.names[i]} cannot be read: {error.strerror or error}")
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        """Raises RunError naming an image that cannot be used."""
        images = []
        for image in self.read(indices.tolist()):
            if isinstance(image, BadImage):
                raise RunError(f"{image}; scaledit data inspect {self.source.path} lists all such images")
            images.append(image)
        x0 = flipped_at(torch.stack(images), positions, seed) if self.flip else torch.stack(images)
        return Batch(x0, self.labels[torch.from_numpy(indices)])


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scaledit-read")


@dataclass(frozen=True)
class BuiltIn:
    """A set that is in memory, read like files. Grey images get three equal channels."""

    name: str
    images: Images

    @property
    def names(self) -> Sequence[str]:
        return [f"{self.name} {i}" for i in range(len(self.images))]

    @property
    def labels(self) -> Tensor:
        return self.images.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        _, h, w = self.images.shape
        return 3, h, w

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.images.numpy().tobytes()).hexdigest()

    @property
    def background(self) -> str:
        return DROP

    def read(self, indices: Sequence[int]) -> list[Tensor | BadImage]:
        return [self.images.images[i].expand(self.shape) for i in indices]
