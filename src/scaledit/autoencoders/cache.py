"""Encodes images into a folder. The work can be resumed and shared by processes, and always gives the same
bytes.

    images of file k in the `plan` --encode, and mirrored--> 00000k.safetensors, parts/00000k.json
    all files present --> index.json

Shard i of n makes the files k with k mod n = i; the processes do not communicate. Files are written
atomically, and existing files are kept. If images were added, they are encoded into further files, and the
index is the old one until all of them exist. `repair` encodes corrupt files again, which must reproduce them
exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
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
from scaledit.autoencoders.plan import (
    GROWN,
    ImageFile,
    Part,
    Plan,
    Slot,
    begun,
    image_file,
    is_folder,
    planned,
)
from scaledit.callbacks import Progress
from scaledit.data.background import DEFAULT, DROP, background_color
from scaledit.data.decode import BadImage
from scaledit.data.files import ImageFiles, Readable
from scaledit.data.latents import FLIPPED, INDEX, LABELS, MOMENTS, REPAIR, DType, Index, ShardFile
from scaledit.data.posterior import split
from scaledit.errors import RunError, UsageError, counted, reading
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import FileHash, is_sha256, mismatch
from scaledit.files.reading import read_json
from scaledit.files.shards import ALL, Shard, begin_or_join

REQUEST, PARTS = "request.json", "parts"


class Encoded(NamedTuple):
    """images: number of encoded images. skipped: images left out, with the reason. complete: whether
    index.json exists. recounted: files whose records were wrong or not sealed (as in the first versions) and
    were computed again from the files. index_repaired: whether `repair` corrected the index. kept: images of
    files that stay although the folder of images has changed."""

    out: Path
    images: int
    skipped: tuple[str, ...]
    complete: bool
    recounted: tuple[str, ...] = ()
    index_repaired: bool = False
    kept: int = 0


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


def encode(
    source: Readable,
    autoencoder: Autoencoder,
    out: Path,
    encoding: Encoding,
    shard: Shard = ALL,
    repair: bool = False,
    progress: Progress | None = None,
    update: bool = False,
) -> Encoded:
    """Makes the missing files of `shard`, and the index once all files exist. repair: also encode corrupt
    files again, and compute all records and the index again. update: encode the files again that contain
    images that were removed or replaced.

    progress(done, total) counts this shard's images. Raises UsageError if `out` holds another cache, images
    were removed or replaced without `update`, or the images do not fit the autoencoder, RunError naming an
    image that cannot be used or a file that cannot be reproduced.
    """
    (_, h, w), f = source.shape, autoencoder.downsampling
    if h % f or w % f:
        raise UsageError(f"{autoencoder.name} encodes multiples of {f} pixels; the images are {w}x{h}")
    source = _as_begun(source, out)
    plan = _begin(source, autoencoder, out, encoding, update)
    folder = _Folder(out, source, autoencoder, encoding, plan)
    kept = sum(part.file.images for part in plan.kept.values())
    if not repair and not plan.is_new and (out / INDEX).is_file():
        index = Index.read(out)
        if index.class_names == source.class_names and folder.is_all(index):
            return Encoded(out, sum(index.counts), index.skipped, True, kept=kept)
    own = [k for k in folder.numbers if shard.has(k)]
    expected = {k: folder.expected(k) for k in own}
    recounted = [k for k in own if folder.restore_record(k, repair)]
    missing = [k for k in own if not folder.is_trusted(k)]
    total = sum(len(folder.slots(k)) for k in own)
    done = total - sum(len(folder.slots(k)) for k in missing)
    bad = sum(len(part.skipped) for part in folder.parts())
    for k in missing:

        def on_batch(images: int, done: int = done) -> None:
            if progress is not None:
                progress(done + images, total)

        bad += len(folder.make(k, bad, expected[k], on_batch).skipped)
        done += len(folder.slots(k))
    parts, repaired = folder.parts(), False
    complete = len(parts) == len(folder.numbers)
    if complete:
        recounted += [k for k in folder.numbers if k not in own and folder.restore_record(k)]
        parts = [folder.checked(k) for k in folder.numbers]
        index = folder.new_index(parts)
        repaired = repair and index != folder.index
        index.write(out)
        folder.remove_others()
    images = sum(part.file.images for part in parts)
    names = tuple(folder.file(k).name for k in recounted)
    return Encoded(out, images, folder.skipped(parts), complete, names, repaired, kept)


def _begin(source: Readable, autoencoder: Autoencoder, out: Path, encoding: Encoding, update: bool) -> Plan:
    """The plan of the files in `out`, written to its request if it is a new one. Raises UsageError if `out`
    holds another cache."""
    settings = _settings(source, autoencoder, encoding)
    first = begun(source, settings, encoding.per_file)
    begin_or_join(
        out, REQUEST, first.request, "encoded images", lambda found: _comparable(found, first.request)
    )
    while True:
        found = _request(out) or {}
        plan = planned(
            source,
            settings,
            encoding.per_file,
            found,
            _records(out),
            retry=encoding.on_bad == "stop",
            update=update,
            first=_first_free(out),
            out=out,
        )
        if _request(out) == found:  # else another process has just written its plan, and maybe files of it
            break
    if plan.is_new:
        atomic_bytes(out / REQUEST, (json.dumps(plan.request, indent=1) + "\n").encode())
    return plan


def _comparable(found: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The request in the folder without what may change: the images, and what is done about bad ones."""
    kept = {key: value for key, value in found.items() if key not in ("on_bad", *GROWN)}
    return {**kept, "images": now["images"], "source": now["source"]}


def _records(out: Path) -> dict[int, Part]:
    """The records of the files that have their recorded size."""
    records = {}
    for path in sorted((out / PARTS).glob("[0-9]*.json")):
        with suppress(OSError, RunError):
            part, intact = Part.read(path)
            if intact and not mismatch(out / f"{path.stem}.safetensors", part.file.size):
                records[int(path.stem)] = part
    return records


def encoded_names(out: Path) -> frozenset[str]:
    """The names of the images in the files of an encoding of a folder."""
    return frozenset(image.name for part in _records(out).values() for image in part.images)


def _first_free(out: Path) -> int:
    """The number after that of every file of latents."""
    return 1 + max((int(path.stem) for path in out.glob("[0-9]*.safetensors")), default=-1)


@dataclass(frozen=True)
class _Folder:
    """The files of a cache and their records. A record is trusted if it is sealed and possible for its file;
    any other one is computed again from the file, provided that the file is as it was written."""

    out: Path
    source: Readable
    autoencoder: Autoencoder
    encoding: Encoding
    plan: Plan

    @cached_property
    def index(self) -> Index | None:
        """The index at the beginning; None if it was missing or corrupt."""
        with suppress(UsageError, RunError):
            return Index.read(self.out)
        return None

    @property
    def numbers(self) -> list[int]:
        return sorted(self.plan.slots)

    def is_all(self, index: Index) -> bool:
        """Whether an index lists the files of the plan."""
        return [shard.file for shard in index.shards] == [self.file(k).name for k in self.numbers]

    def remove_others(self) -> None:
        """Removes files of an earlier plan that hold images which were removed or replaced."""
        for path in self.out.glob("[0-9]*.safetensors"):
            if path.stem.isdigit() and int(path.stem) not in self.plan.slots:
                path.unlink(missing_ok=True)
                self.record_path(int(path.stem)).unlink(missing_ok=True)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image's moments."""
        (_, h, w), f = self.source.shape, self.autoencoder.downsampling
        return 2 * self.autoencoder.channels, h // f, w // f

    def slots(self, k: int) -> Sequence[Slot]:
        return self.plan.slots[k]

    def class_names(self, k: int) -> tuple[str, ...]:
        """What the labels in file k mean: a file that stays keeps its own numbers."""
        return self.plan.kept[k].class_names if k in self.plan.kept else self.source.class_names

    def numbering(self, k: int) -> list[int]:
        """The number of each class of file k in the index. A single class is named after the folder."""
        names, now = self.class_names(k), list(self.source.class_names)
        if len(names) == len(now) == 1:
            return [0]
        return [now.index(name) if name in now else -1 for name in names]

    def file(self, k: int) -> Path:
        return self.out / f"{k:06d}.safetensors"

    def record_path(self, k: int) -> Path:
        return self.out / PARTS / f"{k:06d}.json"

    def record(self, k: int) -> tuple[Part | None, bool]:
        """The record of file k, None if it is missing or impossible, and whether it has an intact seal; the
        first versions wrote no seals."""
        path = self.record_path(k)
        with suppress(OSError, RunError), reading(path, "a record of encoded images"):
            part, intact = Part.read(path)
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
        shards = self.index.shards if self.index else ()
        listed = [shard._replace(classes=None) for shard in shards if shard.file == self.file(k).name]
        return [*listed, *([part.file] if part is not None and intact else [])]

    def restore_record(self, k: int, repair: bool = False) -> bool:
        """Makes the record of file k one that can be trusted, or removes it so that the file is encoded
        again. Returns whether the record was computed from the file. repair: compare every byte of the file,
        even if the record can be trusted."""
        if not repair and (self.is_trusted(k) or not self.record_path(k).is_file()):
            return False
        part, intact = self.record(k)
        files = [*self.expected(k), *([part.file] if part is not None else [])]
        counted = self._count(k, part, {file.sha256 for file in files})
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
            if shapes != self._shapes(part.file.images) or self._counts(k, labels) != part.counts:
                raise ValueError("it contains other images than its record lists")
        return part

    def make(self, k: int, bad: int, expected: Sequence[ShardFile], on_batch: Callable[[int], None]) -> Part:
        """Encodes and writes file k. bad: images left out so far. expected: see `self.expected`."""
        from safetensors.torch import save

        images = self._image_files(k)
        tensors, skipped, left_out = self._encode(k, bad, on_batch)
        path, data = self.file(k), save({name: tensor.contiguous() for name, tensor in tensors.items()})
        images = tuple(image._replace(used=i not in left_out) for i, image in enumerate(images))
        part = self._part(k, tensors, skipped, FileHash.of_bytes(data), images)
        if _request(self.out) != self.plan.request:
            raise RunError(f"{self.out} is being changed by another process; run the same command again")
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

    def _image_files(self, k: int) -> tuple[ImageFile, ...]:
        """The image files of file k before they are read; none if the source is no folder."""
        if k in self.plan.kept:
            return self.plan.kept[k].images
        if not is_folder(self.source):
            return ()
        return tuple(image_file(self.source, slot) for slot in self.slots(k) if isinstance(slot, int))

    def _encode(
        self, k: int, bad: int, on_batch: Callable[[int], None]
    ) -> tuple[dict[str, Tensor], tuple[str, ...], set[int]]:
        """The tensors of file k, the images left out with the reason, and their places among its images."""
        source, encoding, slots = self.source, self.encoding, self.slots(k)
        used: list[int] = []
        skipped: list[str] = []
        left_out: set[int] = set()
        straight, mirrored = [], []
        for first in range(0, len(slots), encoding.batch_size):
            batch = slots[first : first + encoding.batch_size]
            read = iter(source.read([slot for slot in batch if isinstance(slot, int)]))
            images = []
            for place, slot in enumerate(batch, first):
                image = next(read) if isinstance(slot, int) else BadImage(slot)
                if isinstance(image, Tensor):
                    assert isinstance(slot, int)
                    images.append(image)
                    used.append(slot)
                    continue
                left_out.add(place)
                skipped.append(str(image))
                if isinstance(slot, int):
                    self._accept(image, bad + len(skipped))
            if images:
                x = torch.stack(images)
                straight.append(self.autoencoder.encode(x))
                if encoding.flip:
                    mirrored.append(self.autoencoder.encode(x.flip(-1)))
            on_batch(first + len(batch))
        dtype, empty = getattr(torch, encoding.dtype), torch.empty(0, *self.shape)
        tensors = {MOMENTS: torch.cat([empty, *straight]).to(dtype), LABELS: self._labels(k, used)}
        if encoding.flip:
            tensors[FLIPPED] = torch.cat([empty, *mirrored]).to(dtype)
        if not all(bool(moments.isfinite().all()) for moments in _moments(tensors)):
            raise RunError(
                f"encoded images do not fit into {encoding.dtype}; use --dtype bfloat16 or float32"
            )
        return tensors, tuple(skipped), left_out

    def _accept(self, image: BadImage, bad: int) -> None:
        """Raises RunError if an image that cannot be used, one of `bad`, stops the encoding."""
        if self.encoding.on_bad == "stop":
            raise RunError(f"{image}; remove it, or leave such images out with --on-bad skip")
        if bad > self.encoding.max_bad:
            raise RunError(f"{image}; more images than --max-bad {self.encoding.max_bad} cannot be used")

    def _labels(self, k: int, used: Sequence[int]) -> Tensor:
        """The labels of images of the source, numbered as in file k."""
        own = {now: label for label, now in enumerate(self.numbering(k))}
        return torch.tensor([own[label] for label in self.source.labels[used].tolist()], dtype=torch.int64)

    def _count(self, k: int, record: Part | None, hashes: set[str]) -> Part | None:
        """A record computed from file k; None if its SHA-256 is none of `hashes`, or it holds other images
        than the source. record: the one that cannot be trusted; the list of its images is."""
        from safetensors.torch import load

        with suppress(OSError, RunError), reading(self.file(k), "encoded images"):
            data = self.file(k).read_bytes()
            file_hash = FileHash.of_bytes(data)
            if file_hash.sha256 not in hashes:
                return None
            tensors = load(data)
            labels, dtype = tensors[LABELS], getattr(torch, self.encoding.dtype)
            skipped, images = (record.skipped, record.images) if record is not None else ((), ())
            if len(labels) + len(skipped) != len(self.slots(k)):
                skipped, images = (), ()  # the record is wrong
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            if (
                shapes == self._shapes(len(labels))
                and all(tensor.dtype == dtype for tensor in _moments(tensors))
                and self._has_labels(k, labels, skipped)
            ):
                part = self._part(k, tensors, skipped, file_hash, images)
                self._check(k, part)
                return part
        return None

    def _part(
        self,
        k: int,
        tensors: dict[str, Tensor],
        skipped: tuple[str, ...],
        file_hash: FileHash,
        images: tuple[ImageFile, ...],
    ) -> Part:
        labels = tensors[LABELS]
        file = ShardFile(self.file(k).name, len(labels), *file_hash)
        sums = _sums(_moments(tensors))
        return Part(
            file, self._counts(k, labels), sums, skipped, images, self.class_names(k) if images else ()
        )

    def _shapes(self, images: int) -> dict[str, tuple[int, ...]]:
        names = (MOMENTS, FLIPPED) if self.encoding.flip else (MOMENTS,)
        return {**dict.fromkeys(names, (images, *self.shape)), LABELS: (images,)}

    def _counts(self, k: int, labels: Tensor) -> tuple[int, ...]:
        """Images per class of file k. Raises ValueError if the labels are not classes."""
        classes = len(self.class_names(k))
        if labels.dtype != torch.int64 or bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"its labels are not within 0..{classes - 1}")
        return tuple(torch.bincount(labels, minlength=classes).tolist())

    def _has_labels(self, k: int, labels: Tensor, skipped: tuple[str, ...]) -> bool:
        """Whether these are the source's labels of file k without the images left out."""
        names, indices = self.source.names, [slot for slot in self.slots(k) if isinstance(slot, int)]
        used = [
            i
            for i in indices
            if not any(text.startswith((f"{names[i]} ", f"{names[i]}:")) for text in skipped)
        ]
        if len(used) == len(labels):
            return torch.equal(labels, self._labels(k, used))
        most = self._counts(k, self._labels(k, indices))
        return all(a <= b for a, b in zip(self._counts(k, labels), most, strict=True))

    def _check(self, k: int, part: Part) -> None:
        """Raises ValueError if a record is impossible for file k."""
        images, (channels, h, w) = part.file.images, self.shape
        values = images * h * w * (1 + self.encoding.flip)
        possible = (
            type(images) is int
            and all(isinstance(name, str) for name in part.skipped)
            and images + len(part.skipped) == len(self.slots(k))
            and self._has_images(k, part)
            and all(type(count) is int and count >= 0 for count in part.counts)
            and (len(part.counts), sum(part.counts)) == (len(self.class_names(k)), images)
            and [len(row) for row in part.sums] == [4] * (channels // 2)
            and all(isinstance(x, float) and math.isfinite(x) for row in part.sums for x in row)
            and all(row[0] == values and row[2] >= 0 and row[3] >= 0 for row in part.sums)
            and part.file.file == self.file(k).name
            and type(part.file.size) is int
            and is_sha256(part.file.sha256)
        )
        if not possible:
            raise ValueError("its file is too small for the size that it declares")

    def _has_images(self, k: int, part: Part) -> bool:
        """Whether a record lists the images of the plan, or none."""
        names = [self.source.names[slot] if isinstance(slot, int) else None for slot in self.slots(k)]
        return part.images == () or (
            len(part.images) == len(names)
            and part.class_names == self.class_names(k)
            and all(name in (None, image.name) for name, image in zip(names, part.images, strict=True))
        )

    def skipped(self, parts: Sequence[Part]) -> tuple[str, ...]:
        """The images that are left out, with the reason: not those that are gone, or that a later file
        holds or has tried."""
        names, last = set(self.source.names), dict[str, str | None]()
        for part in parts:
            reasons = iter(part.skipped)
            if not part.images:
                last |= {reason: reason for reason in reasons}
            for image in part.images:
                last[image.name] = None if image.used else next(reasons)
                if image.name not in names:
                    del last[image.name]
        return tuple(reason for reason in last.values() if reason is not None)

    def new_index(self, parts: list[Part]) -> Index:
        """The index of a complete cache. Raises RunError if no image could be used."""
        if not any(part.file.images for part in parts):
            count, reason = len(self.source.names), parts[0].skipped[0]
            raise RunError(f"none of {counted(count, 'image')} can be used; the first problem: {reason}")
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
            counts=self._all_counts(parts),
            mean=tuple(average.tolist()),
            std=tuple(np.sqrt(np.maximum(square / n - average**2, 0) + variance / n).tolist()),
            skipped=self.skipped(parts),
            shards=tuple(self._numbered(k, part) for k, part in zip(self.numbers, parts, strict=True)),
        )

    def _all_counts(self, parts: Sequence[Part]) -> tuple[int, ...]:
        counts = np.zeros(len(self.source.class_names), np.int64)
        for k, part in zip(self.numbers, parts, strict=True):
            np.add.at(counts, self.numbering(k), part.counts)
        return tuple(counts.tolist())

    def _numbered(self, k: int, part: Part) -> ShardFile:
        """The entry of file k in the index, with the numbers of its classes if they are other ones now."""
        numbering = self.numbering(k)
        is_same = numbering == [*range(len(numbering))]
        return part.file if is_same else part.file._replace(classes=tuple(numbering))


def _settings(source: Readable, autoencoder: Autoencoder, encoding: Encoding) -> dict[str, Any]:
    """Everything besides the images that the bytes depend on. There is no background if alpha is dropped, as
    in requests of versions that always dropped it, so that their encodings can be continued."""
    background = {} if source.background == DROP else {"background": source.background}
    return {
        **background,
        "image_size": list(source.shape[1:]),
        "autoencoder": autoencoder.sha256,
        **{key: value for key, value in asdict(encoding).items() if key not in ("on_bad", "max_bad")},
    }


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
