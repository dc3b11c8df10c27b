"""Sample sets: ADM's .npz, a folder or tar of PNGs, generated parts, or a model that is sampled when read.

All yield batches of (n, H, W, 3) uint8 in order, a few in memory at a time. Whatever would falsify metrics is
refused with the reason: floats, channels first, mixed sizes, JPEG, alpha, corrupt files.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import numpy as np
from PIL import Image

from scaledit.config import old
from scaledit.data.decode import PNG_DEPTH
from scaledit.errors import UsageError, counted, no_such, reading, reason, shown
from scaledit.files.reading import PNG_MAGIC, check_png
from scaledit.pipeline import Pipeline
from scaledit.sampling.generate import REQUEST, Parts
from scaledit.sampling.request import Request, Spent

BATCH = 64
LARGEST_IMAGE = 1 << 26
"""Pixels: 8192 x 8192. Files that declare more are not decoded."""
LARGEST_ARRAY = 1 << 30
"""Bytes of an array other than the images."""
LARGEST_FILE = 1 << 28
"""Bytes of one encoded image."""
LARGEST_HEADER = 10_000
"""Bytes of an array's header; numpy's own limit."""
IN_MEMORY = 1 << 28
"""Bytes of a batch; batches of large images have fewer than BATCH."""
LOSSY = (".jpg", ".jpeg", ".webp")
TARS = (".tar", ".tar.gz", ".tgz")


class Batch(NamedTuple):
    """images (n, H, W, 3) uint8; labels (n,) int64, the requested classes, or None if unknown."""

    images: np.ndarray
    labels: np.ndarray | None


class SampleSet(Protocol):
    """n images. origin: how they were made, as far as known (see sampling.Request.origin)."""

    @property
    def name(self) -> str: ...

    @property
    def n(self) -> int: ...

    @property
    def origin(self) -> Mapping[str, Any]: ...

    def batches(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class InMemory:
    """Images (N, H, W, 3) uint8 in memory."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    origin: Mapping[str, Any]

    @property
    def n(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[Batch]:
        for first in range(0, self.n, BATCH):
            rows = slice(first, first + BATCH)
            yield Batch(self.images[rows], None if self.labels is None else self.labels[rows])


@dataclass(frozen=True)
class PipelineSamples:
    """A request to a model, sampled when the batches are read."""

    pipeline: Pipeline
    request: Request
    batch_size: int = 250
    spent: Spent = field(default_factory=Spent, compare=False)

    @property
    def name(self) -> str:
        return str(self.pipeline.origin.get("run", "model"))

    @property
    def n(self) -> int:
        return self.request.n

    @property
    def origin(self) -> Mapping[str, Any]:
        return {**self.request.origin(self.pipeline), **self.spent.stated(self.request.settings)}

    def batches(self) -> Iterator[Batch]:
        labels = self.request.labels()
        for first in range(0, len(labels), self.batch_size):
            classes = labels[first : first + self.batch_size]
            start = self.request.start + first
            images = self.pipeline.sample(
                classes, self.request.settings, start, self.batch_size, on_evaluations=self.spent.add
            )
            yield Batch(images, np.array(classes))


@dataclass(frozen=True)
class StoredSamples:
    """Images in files; `batches` reads them. allow_jpeg: whether they may be lossily compressed."""

    name: str
    n: int
    origin: Mapping[str, Any]
    batches: Callable[[], Iterator[Batch]]
    allow_jpeg: bool = False


def npz_samples(path: Path) -> StoredSamples:
    """ADM's batch: arr_0, and arr_1 if the labels are known. Read as a stream, whatever its size."""
    with arrays_of(path) as archive:
        names = archive.namelist()
        if "arr_0.npy" not in names:
            arrays = ", ".join(name.removesuffix(".npy")[:40] for name in names[:8])
            raise UsageError(f"{path} has no images (arr_0); it contains {arrays or 'nothing'}")
        n, *shape = _image_header(archive, path)
        labels = small_array(archive, "arr_1", path) if "arr_1.npy" in names else None
        origin = origin_of(small_array(archive, "origin", path), path) if "origin.npy" in names else {}
    if labels is not None:
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            actual = f"{labels.dtype} of the shape {labels.shape}"
            raise UsageError(f"{path}: arr_1 must be {n} whole numbers (class labels), got {actual}")
        labels = labels.astype(np.int64)  # in this machine's byte order

    def batches() -> Iterator[Batch]:
        size = int(np.prod(shape))
        batch_size = max(1, min(BATCH, IN_MEMORY // size))
        with arrays_of(path) as archive, archive.open("arr_0.npy") as file:
            _header(file, "arr_0", path)
            for first in range(0, n, batch_size):
                count = min(batch_size, n - first)
                try:
                    data = file.read(count * size)
                except Exception as error:  # decompressors raise many types for corrupt bytes
                    raise UsageError(f"{path} is corrupt: {reason(error)}") from None
                if len(data) != count * size:
                    raise UsageError(f"{path} is truncated at image {first + len(data) // size} of {n}")
                images = np.frombuffer(data, np.uint8).reshape(count, *shape)
                yield Batch(images, None if labels is None else labels[first : first + count])

    return StoredSamples(str(path), n, origin, batches)


@contextmanager
def arrays_of(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open .npz. Whatever zipfile and numpy raise for its bytes inside the block becomes a UsageError.

    A zip has checksums of its members' contents only. Their names are stored twice and compared here, so that
    no array is overlooked because its name is corrupt.
    """
    with reading(path, "an .npz file", error=UsageError):
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UsageError(f"{path} is not an .npz file, or it is truncated ({reason(error)})") from None
        with archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise ValueError("it contains two arrays with the same name")
            for info in archive.infolist():
                archive.open(info).close()
            yield archive


def _header(file: IO[bytes], name: str, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, fortran_order, dtype) of an array in an .npz. Raises UsageError if only unpickling could read
    it."""
    magic = file.read(8)
    encoded = file.read(2 if magic[6:7] == b"\1" else 4)
    length = int.from_bytes(encoded, "little")
    if length > LARGEST_HEADER:
        raise UsageError(f"{path}: {name} has a header of {length} bytes, which is too large")
    header = io.BytesIO(magic + encoded + file.read(length))
    npy = np.lib.format
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(header) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(header)
        if not all(side >= 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
    except Exception as error:  # numpy evaluates the header as Python literals, which may raise anything
        raise UsageError(f"{path}: {name} has no readable header ({reason(error)})") from None
    if dtype.hasobject:
        raise UsageError(f"{path}: {name} contains Python objects, which are never unpickled; store numbers")
    return shape, fortran, dtype


def small_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """A complete array other than the images. Raises UsageError for one that is too large or corrupt."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > LARGEST_ARRAY:
        raise UsageError(f"{path}: {name} declares {info.file_size / 1e9:.1f} GB, which is too large")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, name, path)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size > info.file_size:
            raise UsageError(
                f"{path}: {name} declares the shape {shape}, which does not fit its {info.file_size} bytes"
            )
        data = np.empty(size, np.uint8)
        if cast(BufferedIOBase, file).readinto(data.data) != len(data) or file.read(1):
            raise UsageError(f"{path}: {name} does not have the length that it declares")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def origin_of(array: np.ndarray, path: Path) -> dict[str, Any]:
    """How an .npz of scaledit was made, from its array "origin"; empty if that array is not scaledit's.
    Raises UsageError for a text that scaledit does not write."""
    if array.dtype.kind != "U" or array.shape != ():
        return {}
    with reading(path, "an .npz file that says how it was made (origin)", error=UsageError):
        origin = json.loads(str(array))
        if not isinstance(origin, dict):
            raise ValueError(f"it says {shown(origin)}")
    return old.protocol(origin)


def _image_header(archive: zipfile.ZipFile, path: Path) -> tuple[int, int, int, int]:
    """The shape of arr_0. Raises UsageError unless it is a batch of images as in ADM's files."""
    info = archive.getinfo("arr_0.npy")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, "arr_0", path)
        length = file.tell()
        if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
            fix = "ADM's batch is (N, H, W, 3); use transpose(0, 2, 3, 1)"
            raise UsageError(f"{path}: arr_0 has the shape {shape}, with channels first; {fix}")
        if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise UsageError(f"{path}: arr_0 has the shape {shape}; a batch of images is (N, H, W, 3)")
        if dtype != np.uint8:
            raise UsageError(
                f"{path}: arr_0 has the type {dtype}; a batch is uint8 from 0 to 255 (for x in [-1, 1]: "
                "(127.5 * x + 128).clip(0, 255).astype('uint8'))"
            )
        if fortran:
            raise UsageError(
                f"{path}: arr_0 is stored in Fortran order; save np.ascontiguousarray(arr_0) instead"
            )
        if info.file_size != length + int(np.prod(shape, dtype=object)):
            raise UsageError(
                f"{path}: arr_0 declares the shape {shape}, which does not fit its {info.file_size} bytes"
            )
        if shape[1] * shape[2] > LARGEST_IMAGE:
            raise UsageError(
                f"{path}: arr_0 declares images of {shape[2]}x{shape[1]} pixels, which is too large for "
                "samples"
            )
    return shape[0], shape[1], shape[2], 3


NamedReader = tuple[str, Callable[[], bytes]]
"""The name of an encoded image, and a function that reads it."""


def _folder_samples(folder: Path, allow_jpeg: bool) -> StoredSamples:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", *LOSSY))
    _check_names([str(path.relative_to(folder)) for path in paths], str(folder), allow_jpeg)

    def read(path: Path) -> bytes:
        _check_file_size(path.stat().st_size, str(path))
        return path.read_bytes()

    def batches() -> Iterator[Batch]:
        files = ((path.name, lambda path=path: read(path)) for path in paths)
        return _decoded_batches(str(folder), files, allow_jpeg)

    return StoredSamples(str(folder), len(paths), _png_origin(read(paths[0])), batches, allow_jpeg)


def _tar_samples(path: Path, allow_jpeg: bool) -> StoredSamples:
    """In the archive's own order. Nothing is unpacked to the disk."""

    def read(file: IO[bytes]) -> bytes:
        with reading(path, "a tar archive", error=UsageError):  # `_tar` does not see errors of the caller
            return file.read()

    def files() -> Iterator[NamedReader]:
        with _tar(path) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in (".png", *LOSSY):
                    _check_file_size(member.size, f"{path}: {member.name}")
                    file = archive.extractfile(member)
                    assert file is not None  # only links and folders have none
                    yield member.name, lambda file=file: read(file)

    names, first = [], b""
    for name, read_image in files():
        if not names:
            first = read_image()
        names.append(name)
    _check_names(names, str(path), allow_jpeg)

    def batches() -> Iterator[Batch]:
        return _decoded_batches(str(path), files(), allow_jpeg)

    return StoredSamples(str(path), len(names), _png_origin(first), batches, allow_jpeg)


def _decoded_batches(source: str, files: Iterator[NamedReader], allow_jpeg: bool) -> Iterator[Batch]:
    size = None
    with ThreadPoolExecutor(4) as pool:
        verified = ((name, _verified(name, read())) for name, read in files)
        encoded = list(islice(verified, 1))
        batch_size = _batch_size(encoded[0][1]) if encoded else BATCH
        encoded += islice(verified, batch_size - 1)
        while encoded:
            decoded = list(pool.map(lambda item: _decode(item[0], item[1], allow_jpeg), encoded))
            for (name, _), (image, _) in zip(encoded, decoded, strict=True):
                h, w, _ = image.shape
                size = size or (h, w)
                if (h, w) != size:
                    before = f"but earlier images have {size[1]}x{size[0]}; a sample set has one size"
                    raise UsageError(f"{source}: {name} has {w}x{h} pixels, {before}")
            labels = [label for _, label in decoded if label is not None]
            yield Batch(
                np.stack([image for image, _ in decoded]),
                np.array(labels) if len(labels) == len(decoded) else None,
            )
            encoded = list(islice(verified, batch_size))


def _verified(name: str, data: bytes) -> bytes:
    """`data`, a PNG's after comparing it with its own checksums. Raises UsageError."""
    if data.startswith(PNG_MAGIC):
        with reading(name, "a PNG", error=UsageError):
            check_png(data)
    return data


def _batch_size(data: bytes) -> int:
    """How many images like this one are decoded together."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            return max(1, min(BATCH, IN_MEMORY // max(1, 3 * image.width * image.height)))
    except Exception:  # `_decode` reports what is wrong with it
        return BATCH


def _check_file_size(size: int, name: str) -> None:
    if size > LARGEST_FILE:
        raise UsageError(f"{name} has {size / 1e6:.0f} MB, which is too large for a sample")


COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
"""Magic bytes of compressed files, and what opens them."""


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, to be read in order. Raises UsageError unless it ends as one: tarfile takes a corrupt
    header for the end."""
    with path.open("rb") as file:
        begin = file.read(8)
    opener = next((opener for magic, opener in COMPRESSED if begin.startswith(magic)), open)
    with reading(path, "a tar archive", error=UsageError), opener(path, "rb") as file:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as archive:
                yield archive
                file.seek(archive.offset)
                end, entries = file.read(tarfile.BLOCKSIZE), len(archive.getmembers())
        except (tarfile.TarError, EOFError) as error:
            raise UsageError(f"{path} is not a tar archive, or it is corrupt ({reason(error)})") from None
        if end != bytes(tarfile.BLOCKSIZE):
            wrong = "is corrupt" if len(end) == tarfile.BLOCKSIZE else "is cut short"
            raise UsageError(
                f"{path} {wrong} after {counted(entries, 'entry', 'entries')}; a tar archive ends in zeros"
            )


class _Bounded:
    """A file that refuses to read more at once than an image has. A tar header may claim any length, and a
    compressed file would be decompressed into memory."""

    def __init__(self, file: Any):
        self.file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_FILE + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self.file.read(size)


def _check_names(names: list[str], folder: str, allow_jpeg: bool) -> None:
    if not names:
        raise UsageError(f"{folder} contains no PNG images")
    lossy = [name for name in names if Path(name).suffix.lower() in LOSSY]
    if lossy and not allow_jpeg:
        raise UsageError(
            f"{folder} contains {lossy[0]}: lossy compression changes FID as much as a better model does "
            "(features see its block edges and lost detail); use PNGs, or accept it with --allow-jpeg"
        )


def _decode(name: str, data: bytes, allow_jpeg: bool) -> tuple[np.ndarray, int | None]:
    """(H, W, 3) uint8, and the class that scaledit wrote into the file."""
    formats = ["PNG", "JPEG", "WEBP"] if allow_jpeg else ["PNG"]
    kind, fix = f"a {' or '.join(formats)}", "use 8-bit RGB or gray without alpha"
    with reading(name, kind, error=UsageError), Image.open(io.BytesIO(data), formats=formats) as image:
        if image.width * image.height > LARGEST_IMAGE:
            raise UsageError(
                f"{name} declares {image.width}x{image.height} pixels, which is too large for a sample"
            )
        if image.mode not in ("RGB", "L"):
            raise UsageError(f"{name} has the mode {image.mode}; {fix}")
        if "transparency" in image.info:
            raise UsageError(f"{name} has a transparent color; {fix}")
        if image.format == "PNG" and data[PNG_DEPTH] > 8:
            raise UsageError(f"{name} has {data[PNG_DEPTH]} bits per channel; {fix}")
        label = _png_origin(data).get("class")
        if label is not None and (type(label) is not int or not 0 <= label < 1 << 62):
            raise UsageError(f"{name} says that its class is {shown(label)}, which is not a class number")
        return np.asarray(image.convert("RGB")), label


def _png_origin(data: bytes) -> dict[str, Any]:
    """How an image of scaledit was made, from its PNG; empty for other files."""
    origin = None
    with suppress(Exception), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        origin = json.loads(image.info.get("scaledit", "{}"))
    return old.protocol(origin) if isinstance(origin, dict) else {}


def _generated_samples(folder: Path) -> StoredSamples:
    """The parts that `scaledit generate` wrote into a folder."""
    parts = Parts.read(folder)
    if missing := parts.missing():
        raise UsageError(
            f"{folder} is incomplete: {len(missing)} of {counted(len(parts.numbers()), 'part')} "
            f"{'is' if len(missing) == 1 else 'are'} missing; run its "
            "scaledit generate command again"
        )

    def batches() -> Iterator[Batch]:
        for k in parts.numbers():
            part, n = npz_samples(parts.path(k)), len(parts.indices(k))
            if part.n != n:
                fix = "delete it and run its scaledit generate command again"
                raise UsageError(f"{part.name} contains {counted(part.n, 'image')} instead of {n}; {fix}")
            yield from part.batches()

    return StoredSamples(str(folder), parts.n, parts.origin(), batches)


def open_samples(path: Path, allow_jpeg: bool = False) -> SampleSet:
    """The sample set at `path`: a .npz, a tar or a folder of PNGs, or a folder of generated parts.

    Raises UsageError saying what is wrong with it, and how to fix that.
    """
    if not path.exists():
        raise UsageError(no_such(path))
    if (path / REQUEST).is_file():
        samples = _generated_samples(path)
    elif path.is_dir():
        samples = _folder_samples(path, allow_jpeg)
    elif path.name.endswith(TARS):
        samples = _tar_samples(path, allow_jpeg)
    elif path.suffix == ".npz":
        samples = npz_samples(path)
    else:
        raise UsageError(
            f"{path} is not a sample set; use an .npz file, a folder or .tar of PNGs, or a run folder"
        )
    check_count(samples)
    return samples


def check_count(samples: SampleSet) -> None:
    """Raises UsageError for fewer than two images, which have no covariance."""
    if samples.n < 2:
        raise UsageError(f"{samples.name} has {counted(samples.n, 'image')}; metrics need at least two")
