"""Encoded images: posterior moments of an autoencoder, drawn anew each time they are seen.

    x_0 = scale (mean + exp(clamp(logvar, -30, 20) / 2) eps)          (paper, section 4: drawn, not the mode)

A folder that `scaledit encode` fills (docs/data.md): index.json, and shards of safetensors with moments
(N, 2C, h, w), labels (N,) int64 and, for mirrored images, moments_flipped. Read memory-mapped, in any order.
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
from scaledit.files.manifest import mismatch, read_sealed, sealed
from scaledit.files.tensors import header

INDEX = "index.json"
FORMAT = 1
MOMENTS, FLIPPED, LABELS = "moments", "moments_flipped", "labels"
DType = Literal["float16", "bfloat16", "float32"]
STORED = {
    "F16": (np.float16, torch.float16),
    "BF16": (np.uint16, torch.bfloat16),
    "F32": (np.float32, torch.float32),
}
"""By safetensors' names: how numpy maps the bytes, and what torch then sees in them."""
BLOCK = 1 << 22
REPAIR = "run scaledit encode again with --repair"


class ShardFile(NamedTuple):
    """A file of the cache. size in bytes."""

    file: str
    images: int
    size: int
    sha256: str


class AutoencoderInfo(NamedTuple):
    """The autoencoder of a cache. encoder_sha256: of what makes the moments; decoders may be swapped."""

    name: str
    sha256: str
    encoder_sha256: str
    scale: float
    channels: int
    downsampling: int


@dataclass(frozen=True)
class Index:
    """What index.json holds. shape: of one sample's moments. counts: images a class. mean, std: a channel's,
    of the latents, drawn but not scaled. skipped: images that could not be used, and why."""

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
        value["shards"] = [shard._asdict() for shard in self.shards]
        value = {"format": FORMAT, **value}
        atomic_bytes(folder / INDEX, sealed(value))

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises UsageError where there is none, RunError where it is not what was written, or says what
        cannot be."""
        path = folder / INDEX
        if not path.is_file():
            raise UsageError(f"{folder} holds no encoded images: there is no {INDEX}")
        with reading(path, "an index of encoded images", REPAIR):
            value, is_as_written = read_sealed(path, "an index of encoded images", REPAIR)
            if "format" not in value:
                raise UsageError(f"{path} is not an index of encoded images")
            if not is_as_written:
                raise RunError(f"{path} does not match its SHA-256; {REPAIR}")
            if value.pop("format") != FORMAT:
                raise UsageError(
                    f"{path} has another format than this scaledit reads ({FORMAT}); encode again"
                )
            value["autoencoder"] = AutoencoderInfo(**value["autoencoder"])
            value["shards"] = [ShardFile(**shard) for shard in value["shards"]]
            plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
            index = cls(**plain)
            index._check()
        return index

    def _check(self) -> None:
        """Raises ValueError for what no encoding writes, whoever has sealed it."""
        info, channels = self.autoencoder, self.shape[0] if self.shape else 0
        _must(_all(info[:3], str), "its autoencoder has no name or hashes")
        _must(_positive(info.scale), f"its scale is {info.scale!r}")
        _must(
            _integers([*self.image_size, *self.shape, info.channels, info.downsampling], 1)
            and (len(self.image_size), len(self.shape), channels) == (2, 3, 2 * info.channels)
            and self.image_size == tuple(side * info.downsampling for side in self.shape[1:]),
            f"moments of {self.shape} are not those of images of {self.image_size}",
        )
        _must(self.dtype in _SAFETENSORS, f"its dtype is {self.dtype!r}")
        _must(isinstance(self.flip, bool), f"its flip is {self.flip!r}")
        _must(_all(self.class_names, str) and bool(self.class_names), "its class names are no words")
        _must(
            _integers(self.counts, 0) and len(self.counts) == len(self.class_names),
            "its counts are not one whole number a class",
        )
        _must(
            _all((*self.mean, *self.std), float)
            and all(map(math.isfinite, [*self.mean, *self.std]))
            and min(self.std, default=-1) >= 0
            and len(self.mean) == len(self.std) == channels // 2,
            "its mean and std are not one finite number a channel",
        )
        _must(_all(self.skipped, str), "what it says was left out are no words")
        a_row = math.prod(self.shape) * STORED[_SAFETENSORS[self.dtype]][1].itemsize * (1 + self.flip) + 8
        for shard in self.shards:
            _must(
                isinstance(shard.file, str) and re.fullmatch(r"[0-9]+\.safetensors", shard.file) is not None,
                f"{shard.file!r} is no name of a file of its",
            )
            _must(
                _integers([shard.images, shard.size], 0) and shard.size >= shard.images * a_row,
                f"{shard.file} cannot have {shard.images!r} images in {shard.size!r} bytes",
            )
            _must(
                isinstance(shard.sha256, str) and re.fullmatch("[0-9a-f]{64}", shard.sha256) is not None,
                f"{shard.file} has no SHA-256",
            )
        names = [shard.file for shard in self.shards]
        _must(sum(self.counts) > 0, "it has no images")
        _must(len(set(names)) == len(names), "it names a file twice")
        images = sum(shard.images for shard in self.shards)
        _must(sum(self.counts) == images, f"its classes have {sum(self.counts)} images, its files {images}")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _all(values: Sequence[object], kind: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, kind) for v in values)


def _integers(values: Sequence[object], least: int) -> bool:
    return all(type(v) is int and v >= least for v in values)


def _positive(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < math.inf


@dataclass(frozen=True)
class Latents:
    """Shards opened for reading: a batch touches its own samples only."""

    folder: Path
    index: Index
    tables: tuple[Mapping[str, np.ndarray], ...]
    labels: Tensor
    flip: bool

    @cached_property
    def ends(self) -> np.ndarray:
        """ends[k]: samples in shards 0..k."""
        return np.cumsum([shard.images for shard in self.index.shards])

    @cached_property
    def starts(self) -> np.ndarray:
        """starts[k]: samples before shard k."""
        return self.ends - [shard.images for shard in self.index.shards]

    @cached_property
    def rows(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The shards' moments, straight and mirrored, with one flat row a sample: half of the time that rows
        of three axes take."""
        names = (MOMENTS, FLIPPED if self.index.flip else MOMENTS)
        straight, mirrored = (
            [table[name].reshape(len(table[LABELS]), -1) for table in self.tables] for name in names
        )
        return straight, mirrored

    @classmethod
    def open(cls, path: str | Path, *, flip: bool) -> Latents:
        """Checks the index and every shard's size and shape; `verify` checks every byte. Raises UsageError
        for what does not fit, RunError naming a shard that is corrupt."""
        folder = Path(path)
        index = Index.read(folder)
        if flip and not index.flip:
            raise UsageError(f"{folder} holds no mirrored images; encode with flips or set data.flip=false")
        tables = tuple(_map(folder, shard, index) for shard in index.shards)
        labels = torch.from_numpy(np.concatenate([table[LABELS] for table in tables]))
        return cls(folder, index, tables, labels, flip)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.index.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, h, w = self.index.shape
        return channels // 2, h, w

    @property
    def scale(self) -> float:
        return self.index.autoencoder.scale

    def verify(self) -> Iterator[tuple[int, int]]:
        """Hashes every shard, yielding (bytes done, of all). Raises RunError naming those that differ."""
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
            raise corrupt(self.folder, wrong)

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        mirrored = flips(positions, seed).tolist() if self.flip else [False] * len(indices)
        moments = self.moments(indices, mirrored)
        eps = normal(seed, positions, self.shape, Stream.TRAIN_LATENT)
        return Batch(sample(moments, eps, self.scale), self.labels[torch.from_numpy(indices)])

    def moments(self, indices: Sequence[int] | np.ndarray, mirrored: Sequence[bool]) -> Tensor:
        """(N, 2C, h, w) in the type that they are stored in; `draw` and `split` compute in float32."""
        at = np.asarray(indices)
        which = np.searchsorted(self.ends, at, side="right")
        tables, size = self.rows, self.rows[0][0].shape[1]
        out = np.empty((len(at), size), tables[0][0].dtype)
        rows = (at - self.starts[which]).tolist()
        for place, f, k, row in zip(out, mirrored, which.tolist(), rows, strict=True):
            place[:] = tables[f][k][row]
        _, as_torch = STORED[_SAFETENSORS[self.index.dtype]]
        return torch.from_numpy(out.reshape(-1, *self.index.shape)).view(as_torch)


_SAFETENSORS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def corrupt(folder: Path, files: Sequence[str]) -> RunError:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return RunError(f"{folder / files[0]}{more} does not match its SHA-256; {REPAIR}")


def _map(folder: Path, shard: ShardFile, index: Index) -> dict[str, np.ndarray]:
    """A shard's tensors, memory-mapped where safetensors' header says that they lie; the labels read."""
    path = folder / shard.file
    if wrong := mismatch(path, shard.size):
        raise RunError(f"{path} {wrong}; {REPAIR}")
    moments = (shard.images, *index.shape)
    expected = {MOMENTS: (_SAFETENSORS[index.dtype], moments), LABELS: ("I64", (shard.images,))}
    if index.flip:
        expected[FLIPPED] = expected[MOMENTS]
    with reading(path, "encoded images", REPAIR):
        found, tables = header(path), {}
        for name, (dtype, shape) in expected.items():
            if found[name][:2] != (dtype, shape):
                raise ValueError(f"{name} is {found[name].dtype} {list(found[name].shape)}")
            kind = np.int64 if name == LABELS else STORED[dtype][0]
            empty = np.empty(shape, kind)  # what cannot be mapped
            mapped = np.memmap(path, kind, "r", found[name].start, shape) if shard.images else empty
            tables[name] = np.asarray(mapped)  # a plain array: memmap's own indexing is ten times slower
    labels, last = np.array(tables[LABELS]), len(index.class_names) - 1
    if ((labels < 0) | (labels > last)).any():
        raise RunError(f"{path} is corrupt (labels outside 0..{last}); {REPAIR}")
    return {**tables, LABELS: labels}
