"""Where labelled images lie: a folder a class, tar shards, Parquet, a single archive.

    PATH --open_source--> Source: entry i has a name, a class, and bytes to be read

    folder/CLASS/**/image         a tree             archive.zip, archive.tar   the same inside an archive
    folder/*.tar                  WebDataset's shards (`tars`)
    folder/**/*.parquet, *.arrow  Hugging Face's datasets (`tables`)

The order is that of the names, the same on every machine. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from scaledit.data.decode import SUFFIXES, BadImage
from scaledit.errors import UsageError

LARGEST_FILE = 1 << 28
"""Bytes of one encoded image; more is refused before it is read."""
TARS = (".tar",)
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Source:
    """names, labels: of each entry; labels (N,) int64 into class_names. read(i): its bytes (raises BadImage);
    safe to call from several threads."""

    path: Path
    kind: str
    class_names: tuple[str, ...]
    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and classes in order; of no bytes of images."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            digest.update(f"\0{name}\0{label}".encode())
        return digest.hexdigest()


def open_source(path: str | Path) -> Source:
    """The Source at `path`. Raises UsageError for a path that holds no images, a class without any, or labels
    that are no classes."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.name.endswith(PACKED):
        raise UsageError(f"{path} is compressed as a whole, so no image in it can be found alone; unpack it")
    from scaledit.data import tables, tars

    if path.is_dir():
        shards = sorted(p for p in path.iterdir() if p.suffix in TARS)
        if shards:
            return tars.open_shards(path, shards)
        found = sorted(p for p in path.rglob("*") if p.suffix in tables.SUFFIXES)
        return tables.open_tables(path, found) if found else open_tree(path)
    if path.suffix == ".zip":
        return open_zip(path)
    if path.suffix in TARS:
        return tars.open_shards(path, [path])
    if path.suffix in tables.SUFFIXES:
        return tables.open_tables(path, [path])
    raise UsageError(
        f"{path} is no set of images; give a folder with a folder a class, .tar shards, .parquet files "
        "or a .zip"
    )


def open_tree(folder: Path) -> Source:
    """A folder a class; images directly in `folder` are one class of its name."""
    files = [
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not _hidden(p.relative_to(folder))
    ]
    by_name = {p.relative_to(folder).as_posix(): p for p in files}
    empty = [
        p.name
        for p in sorted(folder.iterdir())
        if p.is_dir() and not p.name.startswith(".") and not any(n.startswith(f"{p.name}/") for n in by_name)
    ]
    if empty:
        raise UsageError(f"class {empty[0]!r} has no images: {folder / empty[0]}; fill or remove it")
    names, labels, classes = by_folder(list(by_name), folder)

    def read(i: int) -> bytes:
        file = by_name[names[i]]
        check_size(file.stat().st_size, names[i])
        return file.read_bytes()

    return Source(folder, "folder", classes, names, labels, read)


def open_zip(path: Path) -> Source:
    """A tree in a .zip."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is no .zip, or is cut short ({error})") from None
    entries = {
        info.filename: info
        for info in archive.infolist()
        if PurePosixPath(info.filename).suffix.lower() in SUFFIXES and not _hidden(Path(info.filename))
    }
    names, labels, classes = by_folder(list(entries), path)
    # A forked process must not share a file's position with its parent.
    archives = {os.getpid(): archive}

    def read(i: int) -> bytes:
        check_size(entries[names[i]].file_size, names[i])
        try:
            if os.getpid() not in archives:
                archives[os.getpid()] = zipfile.ZipFile(path)
            return archives[os.getpid()].read(entries[names[i]])
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise BadImage(f"{names[i]} is damaged: {error}") from None

    return Source(path, "zip", classes, names, labels, read)


def by_folder(paths: list[str], where: Path) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """(names in order, labels, class names) of paths whose first folder is the class. One folder around all
    classes is looked through; images without any folder are one class.

    Raises UsageError for no images, and for images beside the class folders.
    """
    if not paths:
        raise UsageError(f"{where} holds no images ({', '.join(SUFFIXES)})")
    names = sorted(paths)
    parts = [PurePosixPath(name).parts for name in names]
    around = 0
    while all(len(p) > around + 2 for p in parts) and len({p[around] for p in parts}) == 1:
        around += 1
    loose = [name for name, p in zip(names, parts, strict=True) if len(p) == around + 1]
    if len(loose) == len(names):
        return names, np.zeros(len(names), np.int64), (where.stem,)
    if loose:
        raise UsageError(f"{where}: {loose[0]} lies beside the classes' folders; put it into one")
    classes = tuple(sorted({p[around] for p in parts}))
    number = {name: i for i, name in enumerate(classes)}
    return names, np.array([number[p[around]] for p in parts], np.int64), classes


def numbered(labels: list[int] | list[str], names: Mapping[int, str] | None, where: Path) -> tuple:
    """(labels (N,) int64, class names) of labels as a file gives them: words, or numbers with or without
    names. Raises UsageError for a number without a name, and for a class without images."""
    if labels and isinstance(labels[0], str):
        classes = tuple(sorted(set(map(str, labels))))
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[str(label)] for label in labels], np.int64), classes
    found = np.array(labels, np.int64)
    count = len(names) if names is not None else int(found.max(initial=-1)) + 1
    wrong = found[(found < 0) | (found >= count)]
    if len(wrong):
        raise UsageError(f"{where} has the label {int(wrong[0])}; its classes are 0..{count - 1}")
    classes = tuple(names[i] if names is not None else str(i) for i in range(count))
    missing = np.flatnonzero(np.bincount(found, minlength=count) == 0)
    if len(missing):
        raise UsageError(f"{where}: class {classes[int(missing[0])]!r} has no images")
    return found, classes


def check_size(size: int, name: str) -> None:
    """Raises BadImage for a file too large to be one image."""
    if size > LARGEST_FILE:
        raise BadImage(f"{name} has {size / 1e6:.0f} MB, more than {LARGEST_FILE / 1e6:.0f}")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
