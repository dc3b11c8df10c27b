"""Encodes images into a folder. The work can be resumed and shared by processes, and always gives the same
bytes.

    images [k S, (k+1) S) --encode, and mirrored--> 00000k.safetensors, parts/00000k.json        S = per_file
    all files present --> index.json

Shard i of n makes the files k with k mod n = i; the processes do not communicate. Files are written
atomically, and existing files are kept. `repair` encodes corrupt files again, which must reproduce them
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
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
from scaledit.data.files import ImageFiles, Readable
from scaledit.data.latents import FLIPPED, INDEX, LABELS, MOMENTS, REPAIR, DType, Index, ShardFile
from scaledit.data.posterior import split
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import FileHash, is_sha256, mismatch, read_sealed, sealed
from scaledit.files.reading import read_json
from scaledit.files.shards import ALL, Shard, begin_or_join

REQUEST, PARTS = "request.json", "parts"


class Encoded(NamedTuple):
    """images: number of encoded images. skipped: images left out, with the reason. complete: whether
    index.json exists. recounted: files whose records were wrong or not sealed (as in the first versions) and
    were computed again from the files. index_repaired: whether `repair` corrected the index."""

    out: Path
    images: int
    skipped: tuple[str, ...]
    complete: bool
    recounted: tuple[str, ...] = ()
    index_repaired: bool = False


@dataclass(frozen=True)
class Encoding:
    """flip: encode mirrored images too. per_file: images per file (1,024 of 256 x 256 at f8 take 32 MB).
    on_bad: whether a corrupt image stops the encoding or is left out. max_bad: maximum number left out."""

    flip: bool = True
    dtype: DType = "float16"
    batch_size: int = 16
    per_file: int = 1024
    on_bad: Literal["stop", "skip"] = "stop"
    max_bad: int = 100


class Part(NamedTuple):
    """The record of a file. counts: images per class. sums: for each channel the number of values, and the
    sums of means, squared means and variances, which add up over files to the statistics in the index."""

    file: ShardFile
    counts: tuple[int, ...]
    sums: tuple[tuple[float, ...], ...]
    skipped: tuple[str, ...]

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        atomic_bytes(path, sealed({**self._asdict(), "file": self.file._asdict()}))


def encode(
    source: Readable,
    autoencoder: Autoencoder,
    out: Path,
    encoding: Encoding,
    shard: Shard = ALL,
    repair: bool = False,
    progress: Progress | None = None,
) -> Encoded:
    """Makes the missing files of `shard`, and the index once all files exist. repair: also encode corrupt
    files again, and compute all records and the index again.

    progress(done, total) counts this shard's images. Raises UsageError if `out` holds another cache or the
    images do not fit the autoencoder, RunError naming an image that cannot be used or a file that cannot be
    reproduced.
    """
    (_, h, w), f = source.shape, autoencoder.downsampling
    if h % f or w % f:
        raise UsageError(f"{autoencoder.name} encodes multiples of {f} pixels; the images are {w}x{h}")
    folder = _Folder(out, _as_begun(source, out), autoencoder, encoding)
    begin_or_join(out, REQUEST, folder.request(), "encoded images")
    if not repair and (out / INDEX).is_file():
        skipped = Index.read(out).skipped
        return Encoded(out, len(source.names) - len(skipped), skipped, True)
    own = [k for k in folder.numbers if shard.has(k)]
    expected = {k: folder.expected(k) for k in own}
    recounted = [k for k in own if folder.restore_record(k, repair)]
    missing = [k for k in own if not folder.is_trusted(k)]
    total = sum(len(folder.indices(k)) for k in own)
    done = total - sum(len(folder.indices(k)) for k in missing)
    bad = sum(len(part.skipped) for part in folder.parts())
    for k in missing:

        def on_batch(images: int, done: int = done) -> None:
            if progress is not None:
                progress(done + images, total)

        bad += len(folder.make(k, bad, expected[k], on_batch).skipped)
        done += len(folder.indices(k))
    parts, repaired = folder.parts(), False
    complete = len(parts) == len(folder.numbers)
    if complete:
        recounted += [k for k in folder.numbers if k not in own and folder.restore_record(k)]
        parts = [folder.checked(k) for k in folder.numbers]
        index = folder.new_index(parts)
        repaired = repair and index != folder.index
        index.write(out)
    skipped = tuple(name for part in parts for name in part.skipped)
    images = sum(part.file.images for part in parts)
    return Encoded(out, images, skipped, complete, tuple(folder.file(k).name for k in recounted), repaired)


@dataclass(frozen=True)
class _Folder:
    """The files of a cache and their records. A record is trusted if it is sealed and possible for its file;
    any other one is computed again from the file, provided that the file is as it was written."""

    out: Path
    source: Readable
    autoencoder: Autoencoder
    encoding: Encoding

    @cached_property
    def index(self) -> Index | None:
        """The index at the beginning; None if it was missing or corrupt."""
        with suppress(UsageError, RunError):
            return Index.read(self.out)
        return None

    @property
    def numbers(self) -> range:
        return range(-(-len(self.source.names) // self.encoding.per_file))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image's moments."""
        (_, h, w), f = self.source.shape, self.autoencoder.downsampling
        return 2 * self.autoencoder.channels, h // f, w // f

    def indices(self, k: int) -> range:
        per_file = self.encoding.per_file
        return range(k * per_file, min((k + 1) * per_file, len(self.source.names)))

    def file(self, k: int) -> Path:
        return self.out / f"{k:06d}.safetensors"

    def record_path(self, k: int) -> Path:
        return self.out / PARTS / f"{k:06d}.json"

    def record(self, k: int) -> tuple[Part | None, bool]:
        """The record of file k, None if it is missing or impossible, and whether it has an intact seal; the
        first versions wrote no seals."""
        path, kind = self.record_path(k), "a record of encoded images"
        with suppress(OSError, RunError), reading(path, kind):
            value, intact = read_sealed(path, kind)
            sums = tuple(tuple(row) for row in value["sums"])
            file = ShardFile(**value["file"])
            part = Part(file, tuple(value["counts"]), sums, tuple(value["skipped"]))
            self._check(k, part)
            return part, intact
        return None, False

    def existing(self, k: int) -> tuple[Part | None, bool]:
        """As `record`, but None if file k does not have the recorded size."""
        part, intact = self.record(k)
        return (None, False) if part is None or mismatch(self.file(k), part.file.size) else (part, intact)

    def is_trusted(self, k: int) -> bool:
        _, intact = self.existing(k)
        return intact

    def parts(self) -> list[Part]:
        """The records of the existing files."""
        return [part for part, _ in map(self.existing, self.numbers) if part is not None]

    def expected(self, k: int) -> list[ShardFile]:
        """What the index and the record state about file k. A new file must equal one of them, if any."""
        part, intact = self.record(k)
        listed = self.index.shards[k : k + 1] if self.index else ()
        return [*listed, *([part.file] if part is not None and intact else [])]

    def restore_record(self, k: int, repair: bool = False) -> bool:
        """Makes the record of file k one that can be trusted, or removes it so that the file is encoded
        again. Returns whether the record was computed from the file. repair: compare every byte of the file,
        even if the record can be trusted."""
        if not repair and (self.is_trusted(k) or not self.record_path(k).is_file()):
            return False
        part, intact = self.record(k)
        files = [*self.expected(k), *([part.file] if part is not None else [])]
        counted = self._count(k, part.skipped if part is not None else (), {file.sha256 for file in files})
        if counted is None:
            self.record_path(k).unlink(missing_ok=True)
            return False
        if intact and part is not None and _agree(part, counted):
            return False
        counted.write(self.record_path(k))
        return True

    def checked(self, k: int) -> Part:
        """The record of file k. Raises RunError if the labels or shapes in the file differ from it."""
        from safetensors import safe_open

        with reading(self.file(k), "encoded images", REPAIR):
            part, _ = self.record(k)
            if part is None:
                raise ValueError("its record is missing or does not match")
            with safe_open(self.file(k), "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                labels = file.get_tensor(LABELS)
            if shapes != self._shapes(part.file.images) or self._counts(labels) != part.counts:
                raise ValueError("it contains other images than its record lists")
        return part

    def make(self, k: int, bad: int, expected: Sequence[ShardFile], on_batch: Callable[[int], None]) -> Part:
        """Encodes and writes file k. bad: images left out so far. expected: see `self.expected`."""
        from safetensors.torch import save

        tensors, skipped = self._encode(k, bad, on_batch)
        path, data = self.file(k), save({name: tensor.contiguous() for name, tensor in tensors.items()})
        part = self._part(k, tensors, skipped, FileHash.of_bytes(data))
        if expected and part.file not in expected and mismatch(path, part.file.size, part.file.sha256):
            raise RunError(
                f"{path} would not be encoded as before, because the images, the autoencoder or the "
                "libraries have changed; encode into another folder"
            )
        try:
            atomic_bytes(path, data)
            part.write(self.record_path(k))
        except OSError as error:
            raise RunError(
                f"could not write {path}: {error.strerror or error}; files written before are intact"
            ) from error
        return part

    def _encode(
        self, k: int, bad: int, on_batch: Callable[[int], None]
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The tensors of file k, and the images left out."""
        source, encoding, indices = self.source, self.encoding, self.indices(k)
        used: list[int] = []
        skipped: list[str] = []
        straight, mirrored = [], []
        for first in range(0, len(indices), encoding.batch_size):
            batch = indices[first : first + encoding.batch_size]
            images = []
            for i, image in zip(batch, source.read(batch), strict=True):
                if isinstance(image, Tensor):
                    images.append(image)
                    used.append(i)
                    continue
                if encoding.on_bad == "stop":
                    raise RunError(f"{image}; remove it, or leave such images out with --on-bad skip")
                skipped.append(str(image))
                if bad + len(skipped) > encoding.max_bad:
                    raise RunError(f"{image}; more images than --max-bad {encoding.max_bad} cannot be used")
            if images:
                x = torch.stack(images)
                straight.append(self.autoencoder.encode(x))
                if encoding.flip:
                    mirrored.append(self.autoencoder.encode(x.flip(-1)))
            on_batch(first + len(batch))
        dtype, empty = getattr(torch, encoding.dtype), torch.empty(0, *self.shape)
        tensors = {MOMENTS: torch.cat([empty, *straight]).to(dtype), LABELS: source.labels[used].clone()}
        if encoding.flip:
            tensors[FLIPPED] = torch.cat([empty, *mirrored]).to(dtype)
        if not all(bool(moments.isfinite().all()) for moments in _moments(tensors)):
            raise RunError(
                f"encoded images do not fit into {encoding.dtype}; use --dtype bfloat16 or float32"
            )
        return tensors, tuple(skipped)

    def _count(self, k: int, skipped: tuple[str, ...], hashes: set[str]) -> Part | None:
        """A record computed from file k; None if its SHA-256 is none of `hashes`, or it holds other images
        than the source."""
        from safetensors.torch import load

        with suppress(OSError, RunError), reading(self.file(k), "encoded images"):
            data = self.file(k).read_bytes()
            file_hash = FileHash.of_bytes(data)
            if file_hash.sha256 not in hashes:
                return None
            tensors = load(data)
            labels, dtype = tensors[LABELS], getattr(torch, self.encoding.dtype)
            if len(labels) + len(skipped) != len(self.indices(k)):
                skipped = ()  # the record is wrong
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            if (
                shapes == self._shapes(len(labels))
                and all(tensor.dtype == dtype for tensor in _moments(tensors))
                and self._has_labels(k, labels, skipped)
            ):
                part = self._part(k, tensors, skipped, file_hash)
                self._check(k, part)
                return part
        return None

    def _part(
        self, k: int, tensors: dict[str, Tensor], skipped: tuple[str, ...], file_hash: FileHash
    ) -> Part:
        labels = tensors[LABELS]
        file = ShardFile(self.file(k).name, len(labels), *file_hash)
        return Part(file, self._counts(labels), _sums(_moments(tensors)), skipped)

    def _shapes(self, images: int) -> dict[str, tuple[int, ...]]:
        names = (MOMENTS, FLIPPED) if self.encoding.flip else (MOMENTS,)
        return {**dict.fromkeys(names, (images, *self.shape)), LABELS: (images,)}

    def _counts(self, labels: Tensor) -> tuple[int, ...]:
        """Images per class. Raises ValueError if the labels are not classes."""
        classes = len(self.source.class_names)
        if labels.dtype != torch.int64 or bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"its labels are not within 0..{classes - 1}")
        return tuple(torch.bincount(labels, minlength=classes).tolist())

    def _has_labels(self, k: int, labels: Tensor, skipped: tuple[str, ...]) -> bool:
        """Whether these are the source's labels of file k without the images left out."""
        names, indices = self.source.names, list(self.indices(k))
        used = [
            i
            for i in indices
            if not any(text.startswith((f"{names[i]} ", f"{names[i]}:")) for text in skipped)
        ]
        if len(used) == len(labels):
            return torch.equal(labels, self.source.labels[used])
        most = self._counts(self.source.labels[indices])
        return all(a <= b for a, b in zip(self._counts(labels), most, strict=True))

    def _check(self, k: int, part: Part) -> None:
        """Raises ValueError if a record is impossible for file k."""
        images, (channels, h, w) = part.file.images, self.shape
        values = images * h * w * (1 + self.encoding.flip)
        possible = (
            type(images) is int
            and all(isinstance(name, str) for name in part.skipped)
            and images + len(part.skipped) == len(self.indices(k))
            and all(type(count) is int and count >= 0 for count in part.counts)
            and (len(part.counts), sum(part.counts)) == (len(self.source.class_names), images)
            and [len(row) for row in part.sums] == [4] * (channels // 2)
            and all(isinstance(x, float) and math.isfinite(x) for row in part.sums for x in row)
            and all(row[0] == values and row[2] >= 0 and row[3] >= 0 for row in part.sums)
            and part.file.file == self.file(k).name
            and type(part.file.size) is int
            and is_sha256(part.file.sha256)
        )
        if not possible:
            raise ValueError("its file is too small for the size that it declares")

    def request(self) -> dict[str, Any]:
        """Everything that the bytes depend on. There is no background if alpha is dropped, as in requests of
        versions that always dropped it, so that their encodings can be continued."""
        source = self.source
        background = {} if source.background == DROP else {"background": source.background}
        return {
            **background,
            "images": len(source.names),
            "source": source.fingerprint,
            "image_size": list(source.shape[1:]),
            "autoencoder": self.autoencoder.sha256,
            **{key: value for key, value in asdict(self.encoding).items() if key != "max_bad"},
        }

    def new_index(self, parts: list[Part]) -> Index:
        """The index of a complete cache. Raises RunError if no image could be used."""
        if not any(part.file.images for part in parts):
            count, reason = len(self.source.names), parts[0].skipped[0]
            raise RunError(f"none of the {count} images can be used; the first problem: {reason}")
        n, mean, square, variance = np.array([part.sums for part in parts]).sum(axis=0).T
        average = mean / n
        _, h, w = self.source.shape
        return Index(
            autoencoder=autoencoder_info(self.autoencoder),
            class_names=self.source.class_names,
            image_size=(h, w),
            shape=self.shape,
            dtype=self.encoding.dtype,
            flip=self.encoding.flip,
            counts=tuple(np.sum([part.counts for part in parts], axis=0).tolist()),
            mean=tuple(average.tolist()),
            std=tuple(np.sqrt(np.maximum(square / n - average**2, 0) + variance / n).tolist()),
            skipped=tuple(name for part in parts for name in part.skipped),
            shards=tuple(part.file for part in parts),
        )


def _moments(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[name] for name in (MOMENTS, FLIPPED) if name in tensors]


def _sums(moments: list[Tensor]) -> tuple[tuple[float, ...], ...]:
    rows = []
    mean, log_variance = split(torch.cat(moments))
    for m, v in zip(mean.double().unbind(1), log_variance.double().unbind(1), strict=True):
        rows.append((float(m.numel()), m.sum().item(), m.square().sum().item(), v.exp().sum().item()))
    return tuple(rows)


def _agree(a: Part, b: Part) -> bool:
    """Whether two records are equal, up to the last digits of sums, which depend on the number of threads."""
    sums = np.allclose(np.array(a.sums), np.array(b.sums), rtol=1e-9, atol=1e-6)
    return sums and a._replace(sums=()) == b._replace(sums=())


def begun_with(out: Path) -> str:
    """The background of the encoding that was begun in `out`, or the default of a new one."""
    if (request := _request(out)) is not None:
        background = request.get("background", DROP)
        with suppress(UsageError, TypeError):
            background_color(background)
            return background
    return DEFAULT


def _as_begun(source: Readable, out: Path) -> Readable:
    """`source` with the order of classes of the encoding in `out`, maybe that of an earlier version."""
    request = _request(out)
    if request is None or not isinstance(source, ImageFiles):
        return source
    legacy = replace(source, source=source.source.legacy())
    return legacy if legacy.fingerprint == request.get("source") else source


def _request(out: Path) -> dict[str, Any] | None:
    """The request in `out`; None if it is missing or corrupt, which `begin_or_join` reports."""
    with suppress(OSError, RunError):
        return read_json(out / REQUEST, "a request for encoded images")
    return None
