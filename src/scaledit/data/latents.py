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

from scaledit.data.posterior import draw
from scaledit.data.sets import Batch, flips
from scaledit.diffusion.noise import Stream, normal
from scaledit.errors import RunError, UsageError, reading
from scaledit.parts import read_json, sealed, whole

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
LARGEST_HEADER = 1 << 20
"""Bytes of a safetensors header of three tensors, and more."""
_PLAIN = re.compile(r"[0-9]+\.safetensors")
LARGEST_COUNT = 1 << 53


def _are_counts(values: object, of: int | None = None, least: int = 0) -> bool:
    return (
        isinstance(values, tuple)
        and (of is None or len(values) == of)
        and all(
            isinstance(one, int) and not isinstance(one, bool) and least <= one < LARGEST_COUNT
            for one in values
        )
    )


def _are_numbers(values: object, of: int | None = None) -> bool:
    """As floats, and finite."""
    return (
        isinstance(values, tuple)
        and (of is None or len(values) == of)
        and all(
            isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
            for one in values
        )
    )


class ShardFile(NamedTuple):
    """A file of the cache. size in bytes."""

    file: str
    images: int
    size: int
    sha256: str


class MadeBy(NamedTuple):
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

    autoencoder: MadeBy
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
        with whole(folder / INDEX) as file:
            file.write(sealed(value))

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises UsageError where there is none, RunError where it is not what was written."""
        path = folder / INDEX
        if not path.is_file():
            raise UsageError(f"{folder} holds no encoded images: there is no {INDEX}")
        with reading(path, "an index of encoded images", REPAIR):
            value = read_json(path, "an index of encoded images", REPAIR)
            if "format" not in value:
                raise UsageError(f"{path} is not an index of encoded images")
            value.pop("sha256", None)
            if path.read_bytes() != sealed(value):
                raise RunError(f"{path} does not match its SHA-256; {REPAIR}")
            if value.pop("format") != FORMAT:
                raise UsageError(
                    f"{path} has another format than this scaledit reads ({FORMAT}); encode again"
                )
            return cls.parse(value)

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Index:
        """Of what `write` wrote, without its format and hash. Raises ValueError (or another exception of a
        parser) for a value that cannot be meant: a hash says only that a file is as somebody wrote it."""
        value["autoencoder"] = MadeBy(**value["autoencoder"])
        value["shards"] = [ShardFile(**shard) for shard in value["shards"]]
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        index = cls(**plain)
        maker, channels = index.autoencoder, index.shape[0] // 2
        images = sum(shard.images for shard in index.shards)
        right = {
            "autoencoder": all(isinstance(text, str) for text in maker[:3])
            and _are_numbers((maker.scale,))
            and _are_counts((maker.channels, maker.downsampling), least=1),
            "class_names": isinstance(index.class_names, tuple)
            and len(index.class_names) > 0
            and all(isinstance(name, str) for name in index.class_names),
            "image_size": _are_counts(index.image_size, of=2, least=1),
            "shape": _are_counts(index.shape, of=3, least=1) and index.shape[0] % 2 == 0,
            "dtype": index.dtype in _SAFETENSORS,
            "flip": isinstance(index.flip, bool),
            "shards": all(
                isinstance(shard.sha256, str)
                and _are_counts(shard[1:3])
                and isinstance(shard.file, str)
                and _PLAIN.fullmatch(shard.file)
                for shard in index.shards
            ),
            "counts": _are_counts(index.counts, of=len(index.class_names)) and sum(index.counts) == images,
            "mean": _are_numbers(index.mean, of=channels),
            "std": _are_numbers(index.std, of=channels),
            "skipped": all(isinstance(name, str) for name in index.skipped),
        }
        wrong = [key for key, is_right in right.items() if not is_right]
        if wrong:
            text = repr(getattr(index, wrong[0]))
            raise ValueError(f"its {wrong[0]} cannot be {text if len(text) <= 60 else text[:57] + '...'}")
        return index


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
        for what does not fit, RunError naming a shard that is damaged."""
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
            raise damaged(self.folder, wrong)

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        mirrored = flips(positions, seed).tolist() if self.flip else [False] * len(indices)
        moments = self.moments(indices, mirrored)
        eps = normal(seed, positions, self.shape, Stream.TRAIN_LATENT)
        return Batch(draw(moments, eps, self.scale), self.labels[torch.from_numpy(indices)])

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


def damaged(folder: Path, files: Sequence[str]) -> RunError:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return RunError(
        f"{folder / files[0]}{more} does not match its SHA-256; run scaledit encode again with --repair"
    )


def _map(folder: Path, shard: ShardFile, index: Index) -> dict[str, np.ndarray]:
    """A shard's tensors, memory-mapped where safetensors' header says that they lie; the labels read."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except OSError:
        raise RunError(f"{path} is missing; run scaledit encode again with --repair") from None
    if size != shard.size:
        raise RunError(f"{path} has {size} bytes instead of {shard.size}; encode again with --repair")
    moments = (shard.images, *index.shape)
    expected = {MOMENTS: (_SAFETENSORS[index.dtype], moments), LABELS: ("I64", (shard.images,))}
    if index.flip:
        expected[FLIPPED] = expected[MOMENTS]
    with reading(path, "encoded images", REPAIR):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, LARGEST_HEADER):
                raise ValueError(f"its header has {length} bytes")
            header = json.loads(file.read(length))
        tables = {}
        for name, (dtype, shape) in expected.items():
            entry = header[name]
            if (entry["dtype"], tuple(entry["shape"])) != (dtype, shape):
                raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}")
            kind = np.int64 if name == LABELS else STORED[dtype][0]
            begin, end = entry["data_offsets"]
            if (
                not _are_counts((begin, end))
                or end - begin != int(np.prod(shape)) * np.dtype(kind).itemsize
                or 8 + length + end > size
            ):
                raise ValueError(f"{name} lies at {begin}..{end}")
            empty = np.empty(shape, kind)  # what cannot be mapped
            mapped = np.memmap(path, kind, "r", 8 + length + begin, shape) if shard.images else empty
            tables[name] = np.asarray(mapped)  # a plain array: memmap's own indexing is ten times slower
    labels, last = np.array(tables[LABELS]), len(index.class_names) - 1
    if ((labels < 0) | (labels > last)).any():
        raise RunError(
            f"{path} is damaged (labels outside 0..{last}); run scaledit encode again with --repair"
        )
    return {**tables, LABELS: labels}
