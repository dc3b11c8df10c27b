"""Held-out images beside latents, as pixels, so that a run on latents can be judged without their originals.

    latents/held-out.npz    arr_0 (N, S, S, 3) uint8, resized and cropped as for training; arr_1 (N,) labels
    latents/held-out.json   how they were chosen and made; size and SHA-256 of the .npz; sealed

`scaledit encode --holdout SHARE` writes both files. At most MOST images are stored, evenly over the classes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scaledit.data.decode import BadImage
from scaledit.data.files import ImageFiles
from scaledit.data.holdout import evenly
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import FileHash, is_sha256, mismatch, read_sealed, sealed

ARRAYS, RECORD = "held-out.npz", "held-out.json"
MOST = 1000
"""Images that are stored, and that a judge reads: 49 MB at 128x128."""
FORMAT = 1
MADE = "center crop, scaled to the side (ADM's), 8 bits"
AGAIN = "run scaledit encode again with --holdout"
BATCH = 64


@dataclass(frozen=True)
class HeldOut:
    """The contents of held-out.json.

    share: of each class. held_out: images that training does not see; images: those of them that are stored.
    names: of all held-out images, which stay held out when the folder of images grows.
    counts: stored images per class. image_size: (height, width). source: fingerprint of the held-out images'
    names and classes. skipped: images that could not be used, with the reason. file_size, file_sha256: of the
    .npz.
    """

    share: float
    held_out: int
    images: int
    names: tuple[str, ...]
    counts: tuple[int, ...]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    made: str
    background: str
    source: str
    skipped: tuple[str, ...]
    file_size: int
    file_sha256: str

    @classmethod
    def read(cls, folder: Path) -> HeldOut | None:
        """The record in a folder of latents; None if there is none. Raises RunError if it is corrupt, or if
        the file of the images does not match it."""
        path = folder / RECORD
        if not path.is_file():
            return None
        what, fix = "a record of held-out images", AGAIN
        with reading(path, what, fix):
            value, intact = read_sealed(path, what, fix)
            if not intact or value.pop("format", None) != FORMAT:
                raise RunError(f"{path} does not match its SHA-256; {fix}")
            plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
            record = cls(**plain)
            record._check()
        if wrong := mismatch(folder / ARRAYS, record.file_size, record.file_sha256):
            raise RunError(f"{folder / ARRAYS} {wrong}; {fix}")
        return record

    def _check(self) -> None:
        """Raises ValueError for contents that are never written, whoever sealed them."""
        numbers = (self.held_out, self.images, self.file_size, *self.counts, *self.image_size)
        possible = (
            all(type(number) is int and number >= 0 for number in numbers)
            and all(
                isinstance(name, str) for name in (*self.names, *self.class_names, *self.skipped, self.source)
            )
            and len(self.names) == self.held_out
            and isinstance(self.share, float)
            and len(self.counts) == len(self.class_names)
            and sum(self.counts) == self.images <= self.held_out
            and len(self.image_size) == 2
            and math.prod(self.image_size) * 3 * self.images <= self.file_size
            and is_sha256(self.file_sha256)
        )
        if not possible:
            raise ValueError("its numbers do not agree")


def write(folder: Path, files: ImageFiles, share: float, on_bad: str = "stop", most: int = MOST) -> HeldOut:
    """Stores at most `most` of the held-out images `files` in `folder`, unless they are stored already.

    share: with which they were held out. on_bad: "stop", or "skip" to leave out images that cannot be used.
    Raises RunError naming such an image, or if the files cannot be written.
    """
    chosen = evenly(files.source.labels, most)
    with_nothing = HeldOut(
        share=share,
        held_out=len(files),
        images=0,
        names=tuple(files.names),
        counts=(),
        class_names=files.class_names,
        image_size=files.shape[1:],
        made=MADE,
        background=files.background,
        source=files.fingerprint,
        skipped=(),
        file_size=0,
        file_sha256="",
    )
    if (stored := intact(folder)) is not None and _request(stored) == _request(with_nothing):
        return stored
    used: list[int] = []
    skipped: list[str] = []
    pixels = [np.empty((0, *files.shape[1:], 3), np.uint8)]
    for first in range(0, len(chosen), BATCH):
        numbers = chosen[first : first + BATCH].tolist()
        read = _read(files, numbers, on_bad, skipped)
        used += read
        pixels.append(np.stack(list(read.values())) if read else pixels[0])
    labels = files.source.labels[np.array(used, np.int64)]
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=np.concatenate(pixels), arr_1=labels)
    data = buffer.getvalue()
    file = FileHash.of_bytes(data)
    record = replace(
        with_nothing,
        images=len(labels),
        counts=tuple(np.bincount(labels, minlength=len(files.class_names)).tolist()),
        skipped=tuple(skipped),
        file_size=file.size,
        file_sha256=file.sha256,
    )
    try:
        atomic_bytes(folder / ARRAYS, data)
        atomic_bytes(folder / RECORD, sealed({"format": FORMAT, **asdict(record)}))
    except OSError as error:
        raise RunError(f"could not write {folder / ARRAYS}: {error.strerror or error}") from error
    return record


def _read(
    files: ImageFiles, numbers: Sequence[int], on_bad: str, skipped: list[str]
) -> dict[int, np.ndarray]:
    """(S, S, 3) uint8 of each image that can be used; the reasons of the others are added to `skipped`."""
    read: dict[int, np.ndarray] = {}
    for i, image in zip(numbers, files.read(numbers), strict=True):
        if isinstance(image, BadImage):
            if on_bad == "stop":
                raise RunError(f"{image}; remove it, or leave such images out with --on-bad skip")
            skipped.append(str(image))
        else:
            read[i] = as_bytes(image)
    return read


def as_bytes(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1], of 8 bits -> (H, W, 3) uint8, exactly."""
    return (127.5 * image + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()


def intact(folder: Path) -> HeldOut | None:
    """The record in a folder of latents; None if there is none or it is corrupt."""
    try:
        return HeldOut.read(folder)
    except (RunError, UsageError, OSError):
        return None


def _request(record: HeldOut) -> tuple[object, ...]:
    """What the stored images depend on."""
    return (
        record.share,
        record.held_out,
        record.class_names,
        record.image_size,
        record.background,
        record.source,
    )
