"""Filling a folder with encoded images: resumable, by any number of processes, always the same bytes.

    images [k S, (k+1) S) --encode, and mirrored--> 00000k.safetensors, parts/00000k.json        S = per_file
    all parts there --> index.json

Shard i of n makes the files k with k mod n = i, without a word between the processes. A file is whole or not
there; what is there is kept. A damaged file is encoded again by `repair`, and must come out as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit.autoencoders import Autoencoder
from scaledit.autoencoders.decoder import made_by
from scaledit.data.decode import BadImage
from scaledit.data.files import ImageFiles, Readable
from scaledit.data.latents import FLIPPED, INDEX, LABELS, MOMENTS, DType, Index, ShardFile
from scaledit.data.posterior import split
from scaledit.errors import RunError, UsageError
from scaledit.parts import WHOLE, Shard, claim, read_json, sha256_of, whole

REQUEST, PARTS = "request.json", "parts"


class Encoded(NamedTuple):
    """images: how many are there now. skipped: those left out. complete: index.json is there."""

    out: Path
    images: int
    skipped: tuple[str, ...]
    complete: bool


@dataclass(frozen=True)
class Encoding:
    """How images become a cache. flip: mirrored ones too. per_file: images a file (1,024 of 256 x 256 at f8:
    32 MB). on_bad: what a damaged image does; at most max_bad are left out."""

    flip: bool = True
    dtype: DType = "float16"
    batch_size: int = 16
    per_file: int = 1024
    on_bad: Literal["stop", "skip"] = "stop"
    max_bad: int = 100


class Part(NamedTuple):
    """What is known of a file when it is written. `sums` add up over files to the index's statistics."""

    file: ShardFile
    counts: tuple[int, ...]
    sums: tuple[tuple[float, ...], ...]  # a channel: values, sum of means, of their squares, of variances
    skipped: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Part:
        value = json.loads(path.read_bytes())
        return cls(
            ShardFile(**value["file"]),
            tuple(value["counts"]),
            tuple(tuple(row) for row in value["sums"]),
            tuple(value["skipped"]),
        )

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with whole(path) as file:
            file.write(json.dumps({**self._asdict(), "file": self.file._asdict()}).encode())


def encode(
    source: Readable,
    autoencoder: Autoencoder,
    out: Path,
    how: Encoding,
    shard: Shard = WHOLE,
    repair: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Makes this shard's missing files, and the index once all are there; with `repair`, also those that are
    damaged.

    progress(done, total) counts this shard's images. Raises UsageError if `out` holds another cache or the
    images do not fit the autoencoder, RunError naming an image that cannot be used or a file that does not
    come out as it was.
    """
    _check_fits(source, autoencoder)
    source = as_begun(source, out)
    total = len(source.names)
    claim(out, REQUEST, _job(source, autoencoder, how), "encoded images")
    numbers = range(-(-total // how.per_file))
    mine = [k for k in numbers if shard.has(k)]
    if repair:
        _forget_damaged(out, mine)
    elif (out / INDEX).is_file():
        skipped = Index.read(out).skipped
        return Encoded(out, total - len(skipped), skipped, True)
    todo = [k for k in mine if not _is_there(out, k)]
    sizes = {k: len(_indices(k, total, how.per_file)) for k in mine}
    all_mine = sum(sizes.values())
    done = all_mine - sum(sizes[k] for k in todo)
    bad = sum(len(_part(out, k).skipped) for k in numbers if _is_there(out, k))
    for k in todo:
        before = _index_entry(out, k)

        def on_batch(some: int, done: int = done) -> None:
            if progress is not None:
                progress(done + some, all_mine)

        part, tensors = _encode_part(source, autoencoder, how, k, bad, on_batch)
        _write(out, k, part, tensors, before)
        bad += len(part.skipped)
        done += sizes[k]
    there = [k for k in numbers if _is_there(out, k)]
    parts = [_part(out, k) for k in there]
    skipped = tuple(name for part in parts for name in part.skipped)
    images = sum(part.file.images for part in parts)
    complete = len(there) == len(numbers)
    if complete:
        _index(source, autoencoder, how, parts).write(out)
    return Encoded(out, images, skipped, complete)


def as_begun(source: Readable, out: Path) -> Readable:
    """`source` as the encoding in `out` knows it: one that an earlier version began is continued with the
    order of classes that this version had."""
    if not isinstance(source, ImageFiles) or not (out / REQUEST).is_file():
        return source
    try:
        begun = read_json(out / REQUEST, "a request for encoded images").get("source")
    except RunError:
        return source  # `claim` says what is wrong with it
    before = replace(source, source=source.source.legacy())
    return before if before.fingerprint == begun else source


def _check_fits(source: Readable, autoencoder: Autoencoder) -> None:
    _, h, w = source.shape
    f = autoencoder.downsampling
    if h % f or w % f:
        raise UsageError(f"{autoencoder.name} encodes multiples of {f} pixels; the images are {w}x{h}")


def _job(source: Readable, autoencoder: Autoencoder, how: Encoding) -> dict[str, Any]:
    """Everything that the bytes depend on."""
    _, h, w = source.shape
    return {
        "images": len(source.names),
        "source": source.fingerprint,
        "image_size": [h, w],
        "autoencoder": autoencoder.sha256,
        "flip": how.flip,
        "dtype": how.dtype,
        "batch_size": how.batch_size,
        "on_bad": how.on_bad,
        "per_file": how.per_file,
    }


def _indices(k: int, total: int, per_file: int) -> range:
    return range(k * per_file, min((k + 1) * per_file, total))


def _file(out: Path, k: int) -> Path:
    return out / f"{k:06d}.safetensors"


def _known(out: Path, k: int) -> Path:
    return out / PARTS / f"{k:06d}.json"


def _part(out: Path, k: int) -> Part:
    return Part.read(_known(out, k))


def _is_there(out: Path, k: int) -> bool:
    """Both files, of the size that was written. (Whether every byte is right, `Latents.verify` says.)"""
    try:
        return _file(out, k).stat().st_size == _part(out, k).file.size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _index_entry(out: Path, k: int) -> ShardFile | None:
    """What index.json says of a file, where there is an index to be believed."""
    try:
        return Index.read(out).shards[k]
    except (UsageError, RunError, IndexError):
        return None


def _forget_damaged(out: Path, numbers: list[int]) -> None:
    """Removes what is known of files that are not what was written, so that they are made again."""
    for k in numbers:
        expected = _index_entry(out, k) or (_part(out, k).file if _is_there(out, k) else None)
        path = _file(out, k)
        if expected is None or not path.is_file() or sha256_of(path) != expected.sha256:
            _known(out, k).unlink(missing_ok=True)


def _encode_part(
    source: Readable,
    autoencoder: Autoencoder,
    how: Encoding,
    k: int,
    bad_before: int,
    on_batch: Callable[[int], None],
) -> tuple[Part, dict[str, Tensor]]:
    """The tensors of file k, and what is known of them but their hash."""
    indices = _indices(k, len(source.names), how.per_file)
    kept: list[int] = []
    skipped: list[str] = []
    straight, mirrored = [], []
    for first in range(0, len(indices), how.batch_size):
        some = indices[first : first + how.batch_size]
        images = []
        for i, image in zip(some, source.read(some), strict=True):
            if isinstance(image, Tensor):
                images.append(image)
                kept.append(i)
            else:
                skipped.append(_bad(image, how, bad_before + len(skipped)))
        if images:
            x = torch.stack(images)
            straight.append(autoencoder.encode(x))
            if how.flip:
                mirrored.append(autoencoder.encode(x.flip(-1)))
        on_batch(first + len(some))
    dtype = getattr(torch, how.dtype)
    _, h, w = source.shape
    f = autoencoder.downsampling
    nothing = torch.empty(0, 2 * autoencoder.channels, h // f, w // f)
    tensors = {MOMENTS: torch.cat([nothing, *straight]).to(dtype), LABELS: source.labels[kept].clone()}
    if how.flip:
        tensors[FLIPPED] = torch.cat([nothing, *mirrored]).to(dtype)
    for name in (MOMENTS, FLIPPED):
        if name in tensors and not bool(tensors[name].isfinite().all()):
            raise RunError(f"encoded images do not fit into {how.dtype}; use --dtype bfloat16 or float32")
    counts = tuple(torch.bincount(tensors[LABELS], minlength=len(source.class_names)).tolist())
    sums = _sums([tensors[name] for name in (MOMENTS, FLIPPED) if name in tensors])
    return Part(ShardFile("", len(kept), 0, ""), counts, sums, tuple(skipped)), tensors


def _bad(error: BadImage, how: Encoding, before: int) -> str:
    if how.on_bad == "stop":
        raise RunError(f"{error}; remove it, or leave such images out with --on-bad skip")
    if before >= how.max_bad:
        raise RunError(
            f"{error}: it is the {before + 1}th image that cannot be used, and --max-bad is {how.max_bad}"
        )
    return str(error)


def _sums(moments: list[Tensor]) -> tuple[tuple[float, ...], ...]:
    rows = []
    mean, log_variance = split(torch.cat(moments))
    for m, v in zip(mean.double().unbind(1), log_variance.double().unbind(1), strict=True):
        rows.append((float(m.numel()), m.sum().item(), m.square().sum().item(), v.exp().sum().item()))
    return tuple(rows)


def _write(out: Path, k: int, part: Part, tensors: dict[str, Tensor], before: ShardFile | None) -> None:
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file = ShardFile(_file(out, k).name, part.file.images, len(data), hashlib.sha256(data).hexdigest())
    if before is not None and file != before:
        raise RunError(
            f"{_file(out, k)} does not come out as it was: the images, the autoencoder or the libraries have "
            f"changed; encode into another folder"
        )
    try:
        with whole(_file(out, k)) as opened:
            opened.write(data)
        part._replace(file=file).write(_known(out, k))
    except OSError as error:
        raise RunError(
            f"could not write {_file(out, k)}: {error.strerror or error}; what was written before is intact"
        ) from error


def _index(source: Readable, autoencoder: Autoencoder, how: Encoding, parts: list[Part]) -> Index:
    n, mean, square, variance = np.array([part.sums for part in parts]).sum(axis=0).T
    average = mean / n
    _, h, w = source.shape
    f = autoencoder.downsampling
    return Index(
        autoencoder=made_by(autoencoder),
        class_names=source.class_names,
        image_size=(h, w),
        shape=(2 * autoencoder.channels, h // f, w // f),
        dtype=how.dtype,
        flip=how.flip,
        counts=tuple(np.sum([part.counts for part in parts], axis=0).tolist()),
        mean=tuple(average.tolist()),
        std=tuple(np.sqrt(square / n - average**2 + variance / n).tolist()),
        skipped=tuple(name for part in parts for name in part.skipped),
        shards=tuple(part.file for part in parts),
    )
