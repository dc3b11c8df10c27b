"""Filling a folder with encoded images: resumable, by any number of processes, always the same bytes.

    images [k S, (k+1) S) --encode, and mirrored--> 00000k.safetensors, parts/00000k.json        S = per_file
    all parts there --> index.json

Shard i of n makes the files k with k mod n = i, without a word between the processes. A file is whole or not
there; what is there is kept. A corrupt file is encoded again by `repair`, and must come out as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit.autoencoders import Autoencoder
from scaledit.autoencoders.decoder import autoencoder_info
from scaledit.callbacks import Progress
from scaledit.data.background import DEFAULT, DROP, background_color
from scaledit.data.decode import BadImage
from scaledit.data.files import ImageFiles, Readable
from scaledit.data.latents import FLIPPED, INDEX, LABELS, MOMENTS, REPAIR, DType, Index, ShardFile
from scaledit.data.posterior import split
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import FileHash, mismatch, read_sealed, sealed
from scaledit.files.reading import read_json
from scaledit.files.shards import ALL, Shard, begin_or_join

REQUEST, PARTS = "request.json", "parts"


class Encoded(NamedTuple):
    """images: how many are there now. skipped: those left out. complete: index.json is there. recounted:
    files whose records were not sealed (those of the first versions are not) or wrong, and were made anew.
    index_mended: by repair."""

    out: Path
    images: int
    skipped: tuple[str, ...]
    complete: bool
    recounted: tuple[str, ...] = ()
    index_mended: bool = False


@dataclass(frozen=True)
class Encoding:
    """How images become a cache. flip: mirrored ones too. per_file: images a file (1,024 of 256 x 256 at f8:
    32 MB). on_bad: what a corrupt image does; at most max_bad are left out."""

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
    def read(cls, path: Path) -> tuple[Part, bool]:
        """What is written there, and whether it is sealed. Records of the first versions are not; whoever
        reads one, or one that was edited, must count again (`_Folder.settle`). Raises RunError, OSError."""
        with reading(path, "a record of encoded images"):
            value, is_sealed = read_sealed(path, "a record of encoded images")
            part = cls(
                ShardFile(**value["file"]),
                tuple(value["counts"]),
                tuple(tuple(row) for row in value["sums"]),
                tuple(value["skipped"]),
            )
        return part, is_sealed

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        atomic_bytes(path, sealed({**self._asdict(), "file": self.file._asdict()}))


def encode(
    source: Readable,
    autoencoder: Autoencoder,
    out: Path,
    how: Encoding,
    shard: Shard = ALL,
    repair: bool = False,
    progress: Progress | None = None,
) -> Encoded:
    """Makes this shard's missing files, and the index once all are there; with `repair`, also those that are
    corrupt, and counts again what is said of all of them.

    progress(done, total) counts this shard's images. Raises UsageError if `out` holds another cache or the
    images do not fit the autoencoder, RunError naming an image that cannot be used or a file that does not
    come out as it was.
    """
    _check_fits(source, autoencoder)
    source = as_begun(source, out)
    total = len(source.names)
    begin_or_join(out, REQUEST, _job(source, autoencoder, how), "encoded images")
    folder = _Folder(out, source, autoencoder, how)
    mine = [k for k in folder.numbers if shard.has(k)]
    if not repair and (out / INDEX).is_file():
        skipped = Index.read(out).skipped
        return Encoded(out, total - len(skipped), skipped, True)
    expected = {k: folder.expected(k) for k in mine}
    recounted = [k for k in mine if folder.settle(k, repair)]
    todo = [k for k in mine if folder.known(k) is None]
    sizes = {k: len(folder.indices(k)) for k in mine}
    all_mine = sum(sizes.values())
    done = all_mine - sum(sizes[k] for k in todo)
    bad = sum(len(folder.said(k)[0].skipped) for k in folder.numbers if folder.is_there(k))
    for k in todo:

        def on_batch(some: int, done: int = done) -> None:
            if progress is not None:
                progress(done + some, all_mine)

        part, tensors = _encode_part(source, autoencoder, how, k, bad, on_batch)
        _write(folder, k, part, tensors, expected[k])
        bad += len(part.skipped)
        done += sizes[k]
    there = [k for k in folder.numbers if folder.is_there(k)]
    mended = False
    complete = len(there) == len(folder.numbers)
    if complete:
        recounted += [k for k in folder.numbers if k not in mine and folder.settle(k)]
        parts = [folder.fitting(k) for k in there]
        index = _index(source, autoencoder, how, parts)
        mended = repair and index != folder.index
        index.write(out)
    else:
        parts = [folder.said(k)[0] for k in there]
    skipped = tuple(name for part in parts for name in part.skipped)
    images = sum(part.file.images for part in parts)
    return Encoded(out, images, skipped, complete, tuple(folder.file(k).name for k in recounted), mended)


@dataclass(frozen=True)
class _Folder:
    """The files of a cache, and what their records say of them. A record is believed where it is sealed and
    says what its file can hold; any other is made anew from the file, if that is what was written."""

    out: Path
    source: Readable
    autoencoder: Autoencoder
    how: Encoding

    @cached_property
    def index(self) -> Index | None:
        """What index.json said at the beginning, where there was one to be believed."""
        with suppress(UsageError, RunError):
            return Index.read(self.out)
        return None

    @property
    def numbers(self) -> range:
        return range(-(-len(self.source.names) // self.how.per_file))

    def indices(self, k: int) -> range:
        return _indices(k, len(self.source.names), self.how.per_file)

    def file(self, k: int) -> Path:
        return self.out / f"{k:06d}.safetensors"

    def record(self, k: int) -> Path:
        return self.out / PARTS / f"{k:06d}.json"

    def said(self, k: int) -> tuple[Part, bool]:
        """The record as it is, and whether it is to be believed. Raises RunError, OSError for none."""
        part, is_sealed = Part.read(self.record(k))
        with reading(self.record(k), "a record of encoded images"):
            self._check(k, part)
        return part, is_sealed

    def is_there(self, k: int) -> bool:
        """Both files, of the size that was written. (Whether every byte is right, `Latents.verify` says.)"""
        try:
            return self.file(k).stat().st_size == self.said(k)[0].file.size
        except (OSError, RunError):
            return False

    def known(self, k: int) -> Part | None:
        """What is to be believed of file k; None where it must be made."""
        if not self.is_there(k):
            return None
        part, is_sealed = self.said(k)
        return part if is_sealed else None

    def expected(self, k: int) -> list[ShardFile]:
        """What a file made anew must be one of: what the index and the record say of the one that was there.
        Empty where there was none."""
        found = [self.index.shards[k]] if self.index and k < len(self.index.shards) else []
        with suppress(OSError, RunError):
            part, is_sealed = self.said(k)
            found += [part.file] if is_sealed else []
        return found

    def settle(self, k: int, repair: bool = False) -> bool:
        """Makes the record of file k one to be believed, or removes it, so that the file is made again.
        Whether the record was made from the file. repair: look at every byte of the file in any case."""
        if not repair and (self.known(k) is not None or not self.record(k).is_file()):
            return False
        said: Part | None = None
        is_sealed = False
        with suppress(OSError, RunError):
            said, is_sealed = self.said(k)
        digests = {one.sha256 for one in [*self.expected(k), *([said.file] if said else [])]}
        part = self._counted(k, () if said is None else said.skipped, digests)
        if part is None:
            self.record(k).unlink(missing_ok=True)
            return False
        if is_sealed and said is not None and _agree(said, part):
            return False
        part.write(self.record(k))
        return True

    def fitting(self, k: int) -> Part:
        """The record of file k, whose labels and shapes are those of the file. Raises RunError."""
        from safetensors import safe_open

        with reading(self.file(k), "encoded images", REPAIR):
            part, _ = self.said(k)
            with safe_open(self.file(k), "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                labels = file.get_tensor(LABELS)
            if shapes != self._shapes(part.file.images) or self._counts(labels) != part.counts:
                raise ValueError("it holds other images than its record says")
        return part

    def _shapes(self, images: int) -> dict[str, tuple[int, ...]]:
        _, h, w = self.source.shape
        f = self.autoencoder.downsampling
        moments = (images, 2 * self.autoencoder.channels, h // f, w // f)
        names = (MOMENTS, FLIPPED) if self.how.flip else (MOMENTS,)
        return {**dict.fromkeys(names, moments), LABELS: (images,)}

    def _counts(self, labels: Tensor) -> tuple[int, ...]:
        """Images a class. Raises ValueError for labels that are no classes."""
        classes = len(self.source.class_names)
        if labels.dtype != torch.int64 or bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"its labels are not within 0..{classes - 1}")
        return tuple(torch.bincount(labels, minlength=classes).tolist())

    def _check(self, k: int, part: Part) -> None:
        """Raises ValueError for what cannot be said of file k."""
        images, shape = part.file.images, self._shapes(1)[MOMENTS]
        each = images * shape[2] * shape[3] * (1 + self.how.flip)
        numbers = [value for row in part.sums for value in row]
        wrong = (
            type(images) is not int
            or not all(isinstance(name, str) for name in part.skipped)
            or images + len(part.skipped) != len(self.indices(k))
            or not all(type(count) is int and count >= 0 for count in part.counts)
            or (len(part.counts), sum(part.counts)) != (len(self.source.class_names), images)
            or [len(row) for row in part.sums] != [4] * self.autoencoder.channels
            or not all(isinstance(value, float) and math.isfinite(value) for value in numbers)
            or any(row[0] != each or row[2] < 0 or row[3] < 0 for row in part.sums)
            or part.file.file != self.file(k).name
            or type(part.file.size) is not int
            or not isinstance(part.file.sha256, str)
            or re.fullmatch("[0-9a-f]{64}", part.file.sha256) is None
        )
        if wrong:
            raise ValueError("it says what its file cannot hold")

    def _counted(self, k: int, skipped: tuple[str, ...], digests: set[str]) -> Part | None:
        """A record made from the file itself; None where that is not what was written (its SHA-256 is none of
        `digests`), or holds other images than the source's."""
        from safetensors.torch import load

        try:
            data = self.file(k).read_bytes()
            found = FileHash.of_bytes(data)
            if found.sha256 not in digests:
                return None
            with reading(self.file(k), "encoded images"):
                tensors = load(data)
                labels = tensors[LABELS]
                moments = [tensors[name] for name in (MOMENTS, FLIPPED) if name in tensors]
                if len(labels) + len(skipped) != len(self.indices(k)):
                    skipped = ()  # whoever wrote them down
                shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                right = (
                    shapes == self._shapes(len(labels))
                    and all(tensor.dtype == getattr(torch, self.how.dtype) for tensor in moments)
                    and self._are_ours(k, labels, skipped)
                )
                if not right:
                    return None
                file = ShardFile(self.file(k).name, len(labels), *found)
                part = Part(file, self._counts(labels), _sums(moments), skipped)
                self._check(k, part)
        except (OSError, RunError):
            return None
        return part

    def _are_ours(self, k: int, labels: Tensor, skipped: tuple[str, ...]) -> bool:
        """Whether these are the source's labels of file k, but for images that were left out."""
        ours = [
            i
            for i in self.indices(k)
            if not any(
                text.startswith((f"{self.source.names[i]} ", f"{self.source.names[i]}:")) for text in skipped
            )
        ]
        if len(ours) == len(labels):
            return torch.equal(labels, self.source.labels[ours])
        most = self._counts(self.source.labels[list(self.indices(k))])
        return all(a <= b for a, b in zip(self._counts(labels), most, strict=True))


def _agree(a: Part, b: Part) -> bool:
    """But for the last digits of sums, which depend on the number of threads."""
    sums = np.allclose(np.array(a.sums), np.array(b.sums), rtol=1e-9, atol=1e-6)
    return sums and a._replace(sums=()) == b._replace(sums=())


def begun_with(out: Path) -> str:
    """The background of the encoding that was begun in `out`, or that of a new one."""
    if not (out / REQUEST).is_file():
        return DEFAULT
    try:
        request = read_json(out / REQUEST, "a request for encoded images")
        word = request.get("background", DROP)
        background_color(word)
    except (OSError, RunError, UsageError, TypeError):
        return DEFAULT  # `begin_or_join` says what is wrong with it
    return word


def as_begun(source: Readable, out: Path) -> Readable:
    """`source` as the encoding in `out` knows it: one that an earlier version began is continued with the
    order of classes that this version had."""
    if not isinstance(source, ImageFiles) or not (out / REQUEST).is_file():
        return source
    try:
        begun = read_json(out / REQUEST, "a request for encoded images").get("source")
    except RunError:
        return source  # `begin_or_join` says what is wrong with it
    before = replace(source, source=source.source.legacy())
    return before if before.fingerprint == begun else source


def _check_fits(source: Readable, autoencoder: Autoencoder) -> None:
    _, h, w = source.shape
    f = autoencoder.downsampling
    if h % f or w % f:
        raise UsageError(f"{autoencoder.name} encodes multiples of {f} pixels; the images are {w}x{h}")


def _job(source: Readable, autoencoder: Autoencoder, how: Encoding) -> dict[str, Any]:
    """Everything that the bytes depend on. Without a background where alpha is dropped: so that what was
    begun when it always was can be continued."""
    _, h, w = source.shape
    background = {} if source.background == DROP else {"background": source.background}
    return {
        **background,
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


def _write(
    folder: _Folder, k: int, part: Part, tensors: dict[str, Tensor], before: Sequence[ShardFile]
) -> None:
    from safetensors.torch import save

    path = folder.file(k)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file = ShardFile(path.name, part.file.images, *FileHash.of_bytes(data))
    as_it_was = not before or file in before or not mismatch(path, file.size, file.sha256)
    if not as_it_was:
        raise RunError(
            f"{path} does not come out as it was: the images, the autoencoder or the libraries have changed; "
            "encode into another folder"
        )
    try:
        atomic_bytes(path, data)
        part._replace(file=file).write(folder.record(k))
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error.strerror or error}; what was written before is intact"
        ) from error


def _index(source: Readable, autoencoder: Autoencoder, how: Encoding, parts: list[Part]) -> Index:
    if not any(part.file.images for part in parts):
        raise RunError(f"none of {len(source.names)} images can be used; the first: {parts[0].skipped[0]}")
    n, mean, square, variance = np.array([part.sums for part in parts]).sum(axis=0).T
    average = mean / n
    _, h, w = source.shape
    f = autoencoder.downsampling
    return Index(
        autoencoder=autoencoder_info(autoencoder),
        class_names=source.class_names,
        image_size=(h, w),
        shape=(2 * autoencoder.channels, h // f, w // f),
        dtype=how.dtype,
        flip=how.flip,
        counts=tuple(np.sum([part.counts for part in parts], axis=0).tolist()),
        mean=tuple(average.tolist()),
        std=tuple(np.sqrt(np.maximum(square / n - average**2, 0) + variance / n).tolist()),
        skipped=tuple(name for part in parts for name in part.skipped),
        shards=tuple(part.file for part in parts),
    )
