"""A cache of encoded images: posterior moments of an autoencoder, sampled again each time they are read.

    x_0 = scale (mean + exp(clamp(logvar, -30, 20) / 2) eps)          (paper, section 4: drawn, not the mode)

`scaledit encode` writes such a folder (docs/data.md): index.json, and safetensors shards with moments (N, 2C,
h, w), labels (N,) int64 and, for mirrored images, moments_flipped. Shards are memory-mapped and read in any
order.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit.data.posterior import sample
from scaledit.data.sets import Batch, flips
from scaledit.diffusion.noise import Stream, normal
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import is_sha256, mismatch, read_sealed, sealed
from scaledit.files.tensors import header

INDEX = "index.json"
FORMAT, RENUMBERED = 1, 2
"""Of the index; RENUMBERED if it gives classes of some files other numbers, which earlier versions do not
read."""
MOMENTS, FLIPPED, LABELS = "moments", "moments_flipped", "labels"
DType = Literal["float16", "bfloat16", "float32"]
STORED = {
    "float16": ("F16", np.float16, torch.float16),
    "bfloat16": ("BF16", np.uint16, torch.bfloat16),
    "float32": ("F32", np.float32, torch.float32),
}
"""{dtype: (safetensors' name, the type as which numpy maps the bytes, torch's type)}."""
BLOCK = 1 << 22
"""Bytes hashed at once."""
REPAIR = "run scaledit encode again with --repair"


class ShardFile(NamedTuple):
    """A file of the cache. images: their number. size: in bytes. classes: the number that each class of the
    file has now, -1 if it is gone; None if it is that in the file."""

    file: str
    images: int
    size: int
    sha256: str
    classes: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in self._asdict().items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardFile:
        """Raises TypeError for other keys."""
        classes = value.get("classes")
        return cls(**{**value, "classes": None if classes is None else tuple(classes)})


class AutoencoderInfo(NamedTuple):
    """The autoencoder of a cache. sha256: of its weights file. encoder_sha256: of the weights that compute
    the moments; autoencoders that share them can decode each other's latents."""

    name: str
    sha256: str
    encoder_sha256: str
    scale: float
    channels: int
    downsampling: int


@dataclass(frozen=True)
class Index:
    """The contents of index.json. image_size: (height, width). shape: of the moments of one sample. counts:
    images per class. mean, std: of each channel of the latents, drawn but not scaled. skipped: images that
    could not be used, with the reason."""

    autoencoder: AutoencoderInfo
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    shape: tuple[int, int, int]
    dtype: DType
    flip: bool
    counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...]
    shards: tuple[ShardFile, ...]

    def write(self, folder: Path) -> None:
        value = json.loads(json.dumps(asdict(self)))
        value["autoencoder"] = self.autoencoder._asdict()
        value["shards"] = json.loads(json.dumps([shard.to_json() for shard in self.shards]))
        renumbered = any(shard.classes is not None for shard in self.shards)
        atomic_bytes(folder / INDEX, sealed({"format": RENUMBERED if renumbered else FORMAT, **value}))

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises UsageError if `folder` has no index or one of another format, RunError if the index is
        corrupt or impossible."""
        path = folder / INDEX
        if not path.is_file():
            raise UsageError(f"{folder} contains no encoded images, because it has no {INDEX}")
        with reading(path, "an index of encoded images", REPAIR):
            value, intact = read_sealed(path, "an index of encoded images", REPAIR)
            if "format" not in value:
                raise UsageError(f"{path} is not an index of encoded images")
            if not intact:
                raise RunError(f"{path} does not match its SHA-256; {REPAIR}")
            if value.pop("format") not in (FORMAT, RENUMBERED):
                raise UsageError(
                    f"{path} has an unknown format (this version of scaledit reads {FORMAT} and "
                    f"{RENUMBERED}); encode the images again"
                )
            value["autoencoder"] = AutoencoderInfo(**value["autoencoder"])
            value["shards"] = [ShardFile.from_json(shard) for shard in value["shards"]]
            plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
            index = cls(**plain)
            index._check()
        return index

    def _check(self) -> None:
        """Raises ValueError for contents that no encoding writes, whoever sealed them."""
        info, channels = self.autoencoder, self.shape[0] if self.shape else 0
        _require(_all(info[:3], str), "its autoencoder has no name or hashes")
        scale_is_number = isinstance(info.scale, float | int) and not isinstance(info.scale, bool)
        _require(scale_is_number and 0 < info.scale < math.inf, f"its scale is {info.scale!r}")
        _require(
            _integers([*self.image_size, *self.shape, info.channels, info.downsampling], 1)
            and (len(self.image_size), len(self.shape), channels) == (2, 3, 2 * info.channels)
            and self.image_size == tuple(side * info.downsampling for side in self.shape[1:]),
            f"moments of {self.shape} are not those of images of {self.image_size}",
        )
        _require(self.dtype in STORED, f"its dtype is {self.dtype!r}")
        _require(isinstance(self.flip, bool), f"its flip is {self.flip!r}")
        _require(_all(self.class_names, str) and bool(self.class_names), "its class names are not words")
        _require(
            _integers(self.counts, 0) and len(self.counts) == len(self.class_names),
            "its counts are not one whole number per class",
        )
        _require(
            _all((*self.mean, *self.std), float)
            and all(map(math.isfinite, [*self.mean, *self.std]))
            and min(self.std, default=-1) >= 0
            and len(self.mean) == len(self.std) == channels // 2,
            "its mean and std are not one finite number per channel",
        )
        _require(_all(self.skipped, str), "its skipped images are not words")
        row_size = math.prod(self.shape) * STORED[self.dtype][2].itemsize * (1 + self.flip) + 8
        for file, images, size, sha256, classes in self.shards:
            named = isinstance(file, str) and re.fullmatch(r"[0-9]+\.safetensors", file) is not None
            _require(named, f"{file!r} is not the name of one of its files")
            fits = _integers([images, size], 0) and size >= images * row_size
            _require(fits, f"{file} cannot have {images!r} images in {size!r} bytes")
            _require(is_sha256(sha256), f"{file} has no SHA-256")
            numbered = classes is None or (
                _integers(classes, -1) and max(classes, default=0) < len(self.class_names)
            )
            _require(numbered, f"{file} has the classes {classes!r}")
        _require(sum(self.counts) > 0, "it has no images")
        _require(len({shard.file for shard in self.shards}) == len(self.shards), "it names a file twice")
        images = sum(shard.images for shard in self.shards)
        _require(
            sum(self.counts) == images, f"its classes have {sum(self.counts)} images, its files {images}"
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _all(values: Sequence[object], kind: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, kind) for v in values)


def _integers(values: Sequence[object], least: int) -> bool:
    return all(type(v) is int and v >= least for v in values)


@dataclass(frozen=True)
class Latents:
    """A cache opened for reading. A batch touches only its own samples.

    tables: the memory-mapped tensors of each shard. labels: (N,) int64. flip: mirror half of the images.
    """

    folder: Path
    index: Index
    tables: tuple[Mapping[str, np.ndarray], ...]
    labels: Tensor
    flip: bool

    @cached_property
    def starts(self) -> np.ndarray:
        """starts[k]: samples before shard k. One more entry has the number of all samples."""
        return np.cumsum([0, *(shard.images for shard in self.index.shards)])

    @cached_property
    def rows(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The moments of each shard, straight and mirrored, with one flat row per sample, which takes half of
        the time that rows with three axes take."""
        names = (MOMENTS, FLIPPED if self.index.flip else MOMENTS)
        straight, mirrored = (
            [table[name].reshape(len(table[LABELS]), -1) for table in self.tables] for name in names
        )
        return straight, mirrored

    @classmethod
    def open(cls, path: str | Path, *, flip: bool) -> Latents:
        """Checks the index, and the size and shapes of every shard; `verify` checks every byte.

        flip: mirror half of the images. Raises UsageError if they were not encoded mirrored too, RunError
        naming a shard that is corrupt.
        """
        folder = Path(path)
        index = Index.read(folder)
        if flip and not index.flip:
            raise UsageError(f"{folder} has no mirrored images; encode with flips or set data.flip=false")
        tables = tuple(_map(folder, shard, index) for shard in index.shards)
        labels = torch.from_numpy(np.concatenate([table[LABELS] for table in tables]))
        return cls(folder, index, tables, labels, flip)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.index.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, h, w = self.index.shape
        return channels // 2, h, w

    def verify(self) -> Iterator[tuple[int, int]]:
        """Hashes every shard and yields (bytes done, all bytes). Raises RunError naming a corrupt shard."""
        total, done, wrong = sum(shard.size for shard in self.index.shards), 0, []
        for shard in self.index.shards:
            digest = hashlib.sha256()
            with (self.folder / shard.file).open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    done += len(block)
                    yield done, total
            if digest.hexdigest() != shard.sha256:
                wrong.append(shard.file)
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise RunError(f"{self.folder / wrong[0]}{more} does not match its SHA-256; {REPAIR}")

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        mirrored = flips(positions, seed).tolist() if self.flip else [False] * len(indices)
        moments = self.moments(indices, mirrored)
        eps = normal(seed, positions, self.shape, Stream.TRAIN_LATENT)
        return Batch(
            sample(moments, eps, self.index.autoencoder.scale), self.labels[torch.from_numpy(indices)]
        )

    def moments(self, indices: Sequence[int] | np.ndarray, mirrored: Sequence[bool]) -> Tensor:
        """The moments of the samples `indices`, mirrored or not: (N, 2C, h, w) in the stored type."""
        indices = np.asarray(indices)
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        rows, sources = (indices - self.starts[shards]).tolist(), self.rows
        moments = np.empty((len(indices), sources[0][0].shape[1]), sources[0][0].dtype)
        for target, flip, shard, row in zip(moments, mirrored, shards.tolist(), rows, strict=True):
            target[:] = sources[flip][shard][row]
        return torch.from_numpy(moments.reshape(-1, *self.index.shape)).view(STORED[self.index.dtype][2])


def _map(folder: Path, shard: ShardFile, index: Index) -> dict[str, np.ndarray]:
    """A shard's tensors, memory-mapped at the offsets in its header. The labels are copied into memory."""
    path = folder / shard.file
    if wrong := mismatch(path, shard.size):
        raise RunError(f"{path} {wrong}; {REPAIR}")
    dtype, as_numpy, _ = STORED[index.dtype]
    moments = (dtype, as_numpy, (shard.images, *index.shape))
    expected = {MOMENTS: moments, LABELS: ("I64", np.int64, (shard.images,))}
    if index.flip:
        expected[FLIPPED] = moments
    with reading(path, "encoded images", REPAIR):
        stored, tables = header(path), {}
        for name, (dtype, as_numpy, shape) in expected.items():
            if stored[name][:2] != (dtype, shape):
                raise ValueError(f"{name} is {stored[name].dtype} {list(stored[name].shape)}")
            empty = np.empty(shape, as_numpy)  # cannot be mapped
            mapped = np.memmap(path, as_numpy, "r", stored[name].start, shape) if shard.images else empty
            tables[name] = np.asarray(mapped)  # indexing a plain array is ten times faster than a memmap
    labels, last = np.array(tables[LABELS]), len(index.class_names) - 1
    if shard.classes is not None:
        numbers, most = np.array(shard.classes, np.int64), len(shard.classes) - 1
        labels = np.where((labels < 0) | (labels > most), -1, numbers[labels.clip(0, max(most, 0))])
    if ((labels < 0) | (labels > last)).any():
        raise RunError(f"{path} is corrupt (labels outside 0..{last}); {REPAIR}")
    return {**tables, LABELS: labels}
