"""Sample sets in: ADM's .npz, a folder or tar of PNGs, generated parts, or drawn from a model when read.

All give batches of (n, H, W, 3) uint8, in order, a few in memory at a time. What would make the figures wrong
is refused with the reason: floats, channels first, mixed sizes, JPEG, alpha, damage.
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
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import numpy as np
from PIL import Image

from scaledit.config import old
from scaledit.data.decode import PNG_DEPTH
from scaledit.errors import UsageError, reading, reason, shown
from scaledit.files.reading import PNG_MAGIC, check_png
from scaledit.pipeline import Pipeline
from scaledit.sampling.generate import REQUEST, Parts
from scaledit.sampling.request import Request

BATCH = 64
LARGEST_IMAGE = 1 << 26
"""Pixels: 8192 x 8192. What a file declares beyond it is not decoded."""
LARGEST_ARRAY = 1 << 30
"""Bytes of an array that is no images."""
LARGEST_PICTURE = 1 << 28
"""Bytes of one encoded image."""
LARGEST_HEADER = 10_000
"""Bytes of what an array says of itself, as numpy has it."""
IN_MEMORY = 1 << 28
"""Bytes of images that are read together; a batch of larger ones has fewer."""
LOSSY = (".jpg", ".jpeg", ".webp")
TARS = (".tar", ".tar.gz", ".tgz")


class Batch(NamedTuple):
    """images (n, H, W, 3) uint8; labels (n,) int64, the classes asked for, or None where nobody says."""

    images: np.ndarray
    labels: np.ndarray | None


class SampleSet(Protocol):
    """n images. origin: how they were made, where that is known (see sampling.Request.origin)."""

    @property
    def name(self) -> str: ...

    @property
    def n(self) -> int: ...

    @property
    def origin(self) -> Mapping[str, Any]: ...

    def batches(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class InMemory:
    """Images (N, H, W, 3) uint8 that are there already."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    origin: Mapping[str, Any]

    @property
    def n(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[Batch]:
        for first in range(0, self.n, BATCH):
            chosen = slice(first, first + BATCH)
            yield Batch(self.images[chosen], None if self.labels is None else self.labels[chosen])


@dataclass(frozen=True)
class PipelineSamples:
    """A request to a model, drawn when the batches are read."""

    pipeline: Pipeline
    request: Request
    batch_size: int = 250

    @property
    def name(self) -> str:
        return str(self.pipeline.origin.get("run", "model"))

    @property
    def n(self) -> int:
        return self.request.n

    @property
    def origin(self) -> Mapping[str, Any]:
        return self.request.origin(self.pipeline)

    def batches(self) -> Iterator[Batch]:
        labels = self.request.labels()
        for first in range(0, len(labels), self.batch_size):
            some = labels[first : first + self.batch_size]
            start = self.request.start + first
            yield Batch(
                self.pipeline.sample(some, self.request.settings, start, self.batch_size), np.array(some)
            )


@dataclass(frozen=True)
class Npz:
    """ADM's batch: arr_0, and arr_1 where the labels are known. Read as a stream: any size, and any disk that
    holds it, serves."""

    path: Path
    shape: tuple[int, int, int, int]
    labels: np.ndarray | None
    origin: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def n(self) -> int:
        return self.shape[0]

    @classmethod
    def open(cls, path: Path) -> Npz:
        with arrays_of(path) as archive:
            names = archive.namelist()
            if "arr_0.npy" not in names:
                held = ", ".join(name.removesuffix(".npy")[:40] for name in names[:8])
                raise UsageError(f"{path} holds no images (arr_0); it has {held or 'nothing'}")
            shape = _image_header(archive, path)
            labels = small_array(archive, "arr_1", path) if "arr_1.npy" in names else None
            origin = origin_of(small_array(archive, "origin", path), path) if "origin.npy" in names else {}
        if labels is not None:
            if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
                raise UsageError(
                    f"{path}: arr_1 must be {shape[0]} whole numbers (classes), it is "
                    f"{labels.dtype}{labels.shape}"
                )
            labels = labels.astype(np.int64)  # in this machine's order of bytes
        return cls(path, shape, labels, origin)

    @staticmethod
    def has_images(path: Path) -> bool:
        with arrays_of(path) as archive:
            return "arr_0.npy" in archive.namelist()

    def batches(self) -> Iterator[Batch]:
        n, *shape = self.shape
        size = int(np.prod(shape))
        at_once = max(1, min(BATCH, IN_MEMORY // size))
        with arrays_of(self.path) as archive, archive.open("arr_0.npy") as file:
            _header(file, "arr_0", self.path)
            for first in range(0, n, at_once):
                count = min(at_once, n - first)
                try:
                    data = file.read(count * size)
                except Exception as error:  # what decompressing corrupt bytes raises
                    raise UsageError(f"{self.path} is corrupt: {reason(error)}") from None
                if len(data) != count * size:
                    raise UsageError(f"{self.path} is cut short at image {first + len(data) // size} of {n}")
                images = np.frombuffer(data, np.uint8).reshape(count, *shape)
                yield Batch(images, None if self.labels is None else self.labels[first : first + count])


@contextmanager
def arrays_of(path: Path) -> Iterator[zipfile.ZipFile]:
    """An .npz, opened. Whatever its bytes make zipfile and numpy raise inside the block becomes a UsageError.

    The checksums of a zip are of its members' contents; their names stand there twice, and are compared here,
    so that no array is overlooked because its name was corrupt.
    """
    with reading(path, "an .npz file", error=UsageError):
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UsageError(f"{path} is no .npz file, or is cut short ({reason(error)})") from None
        with archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise ValueError("it holds two arrays of one name")
            for info in archive.infolist():
                archive.open(info).close()
            yield archive


def _header(file: IO[bytes], name: str, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, fortran_order, dtype) of an array in an .npz; refuses what only unpickling could read."""
    begin = file.read(8)
    width = 2 if begin[6:7] == b"\1" else 4
    length = file.read(width)
    if int.from_bytes(length, "little") > LARGEST_HEADER:
        raise UsageError(f"{path}: {name} has a header of {int.from_bytes(length, 'little')} bytes")
    header = io.BytesIO(begin + length + file.read(int.from_bytes(length, "little")))
    try:
        version = np.lib.format.read_magic(header)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(header)
        if not all(side >= 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
    except Exception as error:  # numpy evaluates the header as Python's literals, with all that may go wrong
        raise UsageError(f"{path}: {name} has no readable header ({reason(error)})") from None
    if dtype.hasobject:
        raise UsageError(
            f"{path}: {name} holds Python objects, which are never unpickled; store plain numbers"
        )
    return shape, fortran, dtype


def small_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """A whole array that is not the images."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > LARGEST_ARRAY:
        raise UsageError(f"{path}: {name} claims {info.file_size / 1e9:.1f} GB")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, name, path)
        if int(np.prod(shape, dtype=object)) * dtype.itemsize > info.file_size:
            raise UsageError(f"{path}: {name} claims {shape}, which does not fit its {info.file_size} bytes")
        data = np.empty(int(np.prod(shape, dtype=object)) * dtype.itemsize, np.uint8)
        if cast(BufferedIOBase, file).readinto(data.data) != len(data) or file.read(1):
            raise UsageError(f"{path}: {name} does not have the length that it claims")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def origin_of(held: np.ndarray, path: Path) -> dict[str, Any]:
    """What scaledit wrote into an .npz about how it was made; empty where an array of that name is none of
    ours. Raises UsageError for a text that is not what it writes."""
    if held.dtype.kind != "U" or held.shape != ():
        return {}
    with reading(path, "an .npz file that says how it was made (origin)", error=UsageError):
        origin = json.loads(str(held))
        if not isinstance(origin, dict):
            raise ValueError(f"it says {shown(origin)}")
    return old.protocol(origin)


def _image_header(archive: zipfile.ZipFile, path: Path) -> tuple[int, int, int, int]:
    info = archive.getinfo("arr_0.npy")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, "arr_0", path)
        length = file.tell()
        if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
            raise UsageError(
                f"{path}: arr_0 is {shape}, channels first; ADM's batch is (N, H, W, 3): "
                "transpose(0, 2, 3, 1)"
            )
        if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise UsageError(f"{path}: arr_0 is {shape}; a batch of images is (N, H, W, 3)")
        if dtype != np.uint8:
            raise UsageError(
                f"{path}: arr_0 is {dtype}; a batch is uint8 from 0 to 255 (for x in [-1, 1]: "
                "(127.5 * x + 128).clip(0, 255).astype('uint8'))"
            )
        if fortran:
            raise UsageError(f"{path}: arr_0 is stored in Fortran order; save np.ascontiguousarray of it")
        if info.file_size != length + int(np.prod(shape, dtype=object)):
            raise UsageError(f"{path}: arr_0 claims {shape}, which does not fit its {info.file_size} bytes")
        if shape[1] * shape[2] > LARGEST_IMAGE:
            raise UsageError(
                f"{path}: arr_0 claims {shape[2]}x{shape[1]} pixels an image; those are no samples"
            )
    return shape[0], shape[1], shape[2], 3


@dataclass(frozen=True)
class Pictures:
    """Encoded images one by one: `files` yields (name, reader) in order."""

    name: str
    n: int
    files: Callable[[], Iterator[tuple[str, Callable[[], bytes]]]]
    allow_jpeg: bool
    origin: Mapping[str, Any]

    def batches(self) -> Iterator[Batch]:
        size = (0, 0)
        with ThreadPoolExecutor(4) as pool:
            files = ((name, _complete(name, read())) for name, read in self.files())
            data = list(islice(files, 1))
            at_once = _at_once(data[0][1]) if data else BATCH
            data += islice(files, at_once - 1)
            while data:
                decoded = list(pool.map(lambda item: _decode(item[0], item[1], self.allow_jpeg), data))
                for (name, _), (image, _) in zip(data, decoded, strict=True):
                    size = image.shape[:2] if size == (0, 0) else size
                    if image.shape[:2] != size:
                        raise UsageError(
                            f"{self.name}: {name} is {image.shape[1]}x{image.shape[0]}, those before are "
                            f"{size[1]}x{size[0]}; a sample set has one size"
                        )
                labels = [label for _, label in decoded if label is not None]
                for (name, _), (_, label) in zip(data, decoded, strict=True):
                    if label is not None and (type(label) is not int or not 0 <= label < 1 << 62):
                        raise UsageError(f"{self.name}: {name} says that its class is {shown(label)}")
                yield Batch(
                    np.stack([image for image, _ in decoded]),
                    np.array(labels) if len(labels) == len(decoded) else None,
                )
                data = list(islice(files, at_once))

    @classmethod
    def of_folder(cls, folder: Path, allow_jpeg: bool) -> Pictures:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", *LOSSY))
        _check_names([str(path.relative_to(folder)) for path in paths], str(folder), allow_jpeg)

        def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
            return ((path.name, lambda path=path: _contents(path)) for path in paths)

        return cls(str(folder), len(paths), files, allow_jpeg, _png_origin(_contents(paths[0])))

    @classmethod
    def of_tar(cls, path: Path, allow_jpeg: bool) -> Pictures:
        """The archive's own order. Nothing is unpacked to the disk."""

        def entries() -> Iterator[tuple[str, Callable[[], bytes]]]:
            with _tar(path) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).suffix.lower() in (".png", *LOSSY):
                        _check_picture(member.size, f"{path}: {member.name}")
                        file = archive.extractfile(member)
                        assert file is not None  # only links and folders have none
                        yield member.name, lambda file=file: _member(file, path)

        names, first = [], b""
        for name, read in entries():
            if not names:
                first = read()
            names.append(name)
        _check_names(names, str(path), allow_jpeg)
        return cls(str(path), len(names), entries, allow_jpeg, _png_origin(first))


def _member(file: IO[bytes], path: Path) -> bytes:
    """A tar's, read where what goes wrong is not seen by `_tar`."""
    with reading(path, "a tar archive", error=UsageError):
        return file.read()


def _complete(name: str, data: bytes) -> bytes:
    """The same, after comparing a PNG with its own checksums. Raises UsageError."""
    if data.startswith(PNG_MAGIC):
        with reading(name, "a PNG", error=UsageError):
            check_png(data)
    return data


def _at_once(data: bytes) -> int:
    """Images like this one that are decoded together."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            return max(1, min(BATCH, IN_MEMORY // max(1, 3 * image.width * image.height)))
    except Exception:  # decoding says what is wrong with it
        return BATCH


def _contents(path: Path) -> bytes:
    _check_picture(path.stat().st_size, str(path))
    return path.read_bytes()


def _check_picture(size: int, name: str) -> None:
    if size > LARGEST_PICTURE:
        raise UsageError(f"{name} has {size / 1e6:.0f} MB; that is no sample")


PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
"""How compressed files begin, and what opens them."""


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, to be gone through in order, which must end as one: tarfile takes a header that makes no
    sense for the end. Raises UsageError."""
    with path.open("rb") as file:
        begin = file.read(8)
    opener = next((opener for magic, opener in PACKED if begin.startswith(magic)), open)
    with reading(path, "a tar archive", error=UsageError), opener(path, "rb") as file:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Careful(file)), mode="r:") as archive:
                yield archive
                file.seek(archive.offset)
                end, entries = file.read(tarfile.BLOCKSIZE), len(archive.getmembers())
        except (tarfile.TarError, EOFError) as error:
            raise UsageError(f"{path} is no tar archive, or is corrupt ({reason(error)})") from None
        if end != bytes(tarfile.BLOCKSIZE):
            wrong = "is corrupt" if len(end) == tarfile.BLOCKSIZE else "is cut short"
            raise UsageError(f"{path} {wrong} after {entries} entries: a tar archive ends in zeros")


class _Careful:
    """A file of which nobody reads more at once than a picture has, whatever length a header claims: of a
    compressed file that would be decompressed into memory."""

    def __init__(self, file: Any):
        self.file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_PICTURE + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self.file.read(size)


def _check_names(names: list[str], where: str, allow_jpeg: bool) -> None:
    if not names:
        raise UsageError(f"{where} holds no PNG images")
    lossy = [name for name in names if Path(name).suffix.lower() in LOSSY]
    if lossy and not allow_jpeg:
        raise UsageError(
            f"{where} holds {lossy[0]}: lossy compression changes FID as much as a better model does "
            "(its block edges and lost detail are what the features see); give PNGs, or accept it with "
            "--allow-jpeg"
        )


def _decode(name: str, data: bytes, allow_jpeg: bool) -> tuple[np.ndarray, int | None]:
    """(H, W, 3) uint8, and the class that scaledit wrote into the file."""
    formats = ["PNG", "JPEG", "WEBP"] if allow_jpeg else ["PNG"]
    fix = "give 8-bit RGB or grey without alpha"
    what = f"a {' or '.join(formats)}"
    with (
        reading(name, what, error=UsageError),
        Image.open(io.BytesIO(data), formats=formats) as image,
    ):
        if image.width * image.height > LARGEST_IMAGE:
            raise UsageError(f"{name} declares {image.width}x{image.height} pixels; that is no sample")
        if image.mode not in ("RGB", "L"):
            raise UsageError(f"{name} has the mode {image.mode}; {fix}")
        if "transparency" in image.info:
            raise UsageError(f"{name} has a transparent color; {fix}")
        if image.format == "PNG" and data[PNG_DEPTH] > 8:
            raise UsageError(f"{name} has {data[PNG_DEPTH]} bits per channel; {fix}")
        return np.asarray(image.convert("RGB")), _png_origin(data).get("class")


def _png_origin(data: bytes) -> dict[str, Any]:
    """What scaledit wrote into a PNG about how it was made; empty for other files."""
    origin = None
    with suppress(Exception), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        origin = json.loads(image.info.get("scaledit", "{}"))
    return old.protocol(origin) if isinstance(origin, dict) else {}


@dataclass(frozen=True)
class Generated:
    """A folder that `scaledit generate` has filled."""

    parts: Parts

    @property
    def name(self) -> str:
        return str(self.parts.folder)

    @property
    def n(self) -> int:
        return self.parts.n

    @property
    def origin(self) -> Mapping[str, Any]:
        return self.parts.request

    def batches(self) -> Iterator[Batch]:
        for k in self.parts.numbers():
            part, n = Npz.open(self.parts.path(k)), len(self.parts.indices(k))
            if part.n != n:
                raise UsageError(
                    f"{part.name} holds {part.n} images, and {n} belong there; delete it and run its "
                    "scaledit generate again"
                )
            yield from part.batches()


def open_samples(path: Path, allow_jpeg: bool = False) -> SampleSet:
    """The sample set at `path`: a .npz, a tar or a folder of PNGs, or a folder of generated parts.

    Raises UsageError naming what is wrong with it, and how to mend that.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_dir():
        if (path / REQUEST).is_file():
            parts = Parts.read(path)
            missing = parts.missing()
            if missing:
                raise UsageError(
                    f"{path} is not complete: {len(missing)} of {len(parts.numbers())} parts are missing; "
                    "run its scaledit generate again"
                )
            return _at_least_two(Generated(parts))
        return _at_least_two(Pictures.of_folder(path, allow_jpeg))
    if path.name.endswith(TARS):
        return _at_least_two(Pictures.of_tar(path, allow_jpeg))
    if path.suffix == ".npz":
        return _at_least_two(Npz.open(path))
    raise UsageError(f"{path} is no sample set; give a .npz, a folder or .tar of PNGs, or a run folder")


def _at_least_two(samples: SampleSet) -> SampleSet:
    if samples.n < 2:
        raise UsageError(f"{samples.name} holds {samples.n} image; figures need at least two")
    return samples
