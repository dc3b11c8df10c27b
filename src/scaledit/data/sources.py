"""Labelled images in files: one folder per class, tar shards, Parquet, or an archive.

    PATH --open_source--> Source: names, classes and bytes of the images, and the files that are not used

    folder/CLASS/**/image         a tree             archive.zip, archive.tar   the same inside an archive
    folder/**/*.tar               WebDataset's shards (`tars`)
    folder/**/*.parquet, *.arrow  Hugging Face's datasets (`tables`)

`layout` decides which of these a folder is, `splits` which split is read. Images are sorted by name, the same
on every machine; named classes are in natural order (2, 10). Nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaledit.data import layout, splits
from scaledit.data.decode import SUFFIXES, BadImage
from scaledit.data.names import as_text, encoded, natural_key, parts_of, suffix_of
from scaledit.data.unused import ARCHIVES, PACKED, PICTURE, TABLES, LeftOut, Unused, first, kind_of
from scaledit.errors import UsageError, no_such, shown

LARGEST_FILE = 1 << 28
"""Maximum bytes of one encoded image, checked before it is read."""


@dataclass(frozen=True)
class Source:
    """Labelled images that can be read one by one.

    labels: (N,) int64 into class_names. read: returns the bytes of image i, or raises BadImage; safe to call
    from several threads. unused: files that are not part of the set. notes: what else may surprise a user.
    split: the split that is read, "" if there are none. by_name: the classes are numbered by their names.
    """

    path: Path
    kind: str
    class_names: tuple[str, ...]
    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes]
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    split: str = ""
    by_name: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and classes in order, without the bytes of the images."""
        digest = hashlib.sha256(b"\0".join(map(encoded, self.class_names)))
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            digest.update(b"\0%s\0%d" % (encoded(name), label))
        return digest.hexdigest()

    def subset(self, indices: np.ndarray) -> Source:
        """The images at `indices`, in that order, with all classes."""
        chosen = indices.tolist()
        return replace(
            self,
            names=[self.names[i] for i in chosen],
            labels=self.labels[indices],
            read=lambda k: self.read(chosen[k]),
        )

    def with_classes(self, class_names: tuple[str, ...]) -> Source:
        """The same images with their classes in the order of `class_names`. Raises ValueError if these are
        not the same classes."""
        number = {name: i for i, name in enumerate(class_names)}
        if sorted(class_names) != sorted(self.class_names) or len(number) != len(class_names):
            raise ValueError(class_names)
        numbers = np.array([number[name] for name in self.class_names], np.int64)
        return replace(self, class_names=class_names, labels=numbers[self.labels])

    def legacy(self) -> Source:
        """The same images with classes numbered as text (10 before 2), as in earlier versions. An encoding
        that one of them began is continued like this."""
        return self.with_classes(tuple(sorted(self.class_names))) if self.by_name else self

    def remarks(self) -> tuple[str, ...]:
        """Lines that a user should know before training: the split, files that are not used, notes."""
        split = [f"{self.path}: the split {self.split} is read"] if self.split else []
        unused = "; ".join(map(str, self.unused))
        more = (
            [f"{self.path}: these files are not used: {unused} (scaledit data inspect lists more)"]
            if unused
            else []
        )
        return (*split, *more, *self.notes)


def open_source(path: str | Path, split: str = "", image_key: str = "") -> Source:
    """The labelled images at `path`.

    split: the split to read if there are several; "" means train, "all" all of them as one set. image_key:
    the member of a WebDataset sample that is the image, named by what follows the key ("jpg", "input.png");
    "" means the only one, or the one with a single dot in its name.

    Raises UsageError if `path` has no images or may be two sets, a class has no images, or labels are not
    classes.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(no_such(path))
    from scaledit.data import tables, tars, zips

    suffix = suffix_of(path.name)
    if path.is_dir():
        return _open_folder(path, split, image_key)
    _check_image_key(path, image_key, suffix)
    if suffix in PACKED:
        raise UsageError(
            f"{path} is compressed as a whole, so its images cannot be read one by one; unpack it"
        )
    if suffix == ".zip":
        return zips.open_zip(path, split)
    if suffix in layout.TARS:
        own = splits.of_file(path.name)
        if own:
            splits.choose({own: [path.name]}, split, path)
        return tars.open_shards(path, [path], own, "" if own else split, image_key, LeftOut())
    if suffix in TABLES:
        chosen = splits.choose(splits.grouped([path.name]), split, path)
        return tables.open_tables(path, [path], chosen.name, LeftOut())
    raise UsageError(
        f"{path} is not a set of images; give a folder with one folder per class, .tar shards, .parquet "
        "files or a .zip"
    )


def _open_folder(folder: Path, split: str, image_key: str) -> Source:
    from scaledit.data import tables, tars

    left = LeftOut()
    files, folders = layout.walk(folder, left)
    kind, shards, excluded = layout.decide(folder, files, left)
    _check_image_key(folder, image_key, kind)
    if kind == "tree":
        return _open_tree(folder, files, folders, split, left)
    by_split = splits.grouped(shards)
    # Shards without splits may contain folders that are splits.
    inner_split = split if set(by_split) == {""} and kind in layout.TARS else ""
    chosen = splits.choose(by_split, "" if inner_split else split, folder)
    # Files that belong to such a set although they are not shards or tables.
    json_files = (layout.STATE, "dataset_info.json", "dataset_dict.json")
    beside = (layout.CLASSES,) if kind in layout.TARS else json_files
    used = {*shards, *excluded, *(name for name in files if name.rpartition("/")[2] in beside)}
    left.by_kind(name for name in files if name not in used)
    for other, names in chosen.others.items():
        left.add(f"files of the split {other}" if other else "files of no split", *names)
    paths = [folder / name for name in chosen.files]
    if kind in layout.TARS:
        return tars.open_shards(folder, paths, chosen.name, inner_split, image_key, left)
    return tables.open_tables(folder, paths, chosen.name, left)


def _check_image_key(path: Path, image_key: str, kind: str) -> None:
    if image_key and kind not in layout.TARS:
        raise UsageError(f"an image key ({image_key}) is for WebDataset's tar shards; {path} has none")


def _open_tree(
    folder: Path, files: Sequence[str], folders: Sequence[str], split: str, left: LeftOut
) -> Source:
    tree = by_folder(files, folders, folder, split, left)

    def read(i: int) -> bytes:
        file = folder / tree.names[i]
        check_size(file.stat().st_size, tree.names[i])
        return file.read_bytes()

    return Source(folder, "folder", **tree._asdict(), read=read, by_name=True)


class Tree(NamedTuple):
    """Images whose folders are their classes. The fields are those of a Source."""

    names: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    split: str
    notes: tuple[str, ...]
    unused: tuple[Unused, ...]


def by_folder(files: Iterable[str], folders: Iterable[str], path: Path, split: str, left: LeftOut) -> Tree:
    """The images among `files` by their class folders. path: of the set, for messages and the name of a
    class.

    A folder around all classes is skipped. Folders whose names are splits (`splits`) are not classes, and one
    split is read. Images without any folder are one class, named after the set. Everything below a class
    folder belongs to that class.

    Raises UsageError if there are no images, images beside class folders, or splits beside other folders, or
    if a folder in the place of a class has no files or only pictures in unsupported formats.
    """
    files = sorted(files)
    names = [name for name in files if suffix_of(name) in SUFFIXES]
    others = [name for name in files if suffix_of(name) not in SUFFIXES]
    left.by_kind(others)
    if not names:
        raise UsageError(f"{path} contains no images ({', '.join(SUFFIXES)}){_instead(others)}")
    parts = [parts_of(name) for name in names]
    with_images = {p[:k] for p in parts for k in range(len(p))}
    depth, chosen = 0, ""  # of the class folders; the split that is read
    while all(len(p) > depth + 1 for p in parts):
        split_of = {top: splits.of_folder(top) for top in {p[depth] for p in parts}}
        if len(split_of) == 1 and all(len(p) > depth + 2 for p in parts):
            chosen = chosen or "".join(split_of.values())
        elif len(set(split_of.values()) - {""}) > 1 and not chosen:
            if strange := sorted(top for top, name in split_of.items() if not name):
                like_splits = ", ".join(sorted(top for top, name in split_of.items() if name))
                raise UsageError(
                    f"{path} has the folders {like_splits}, which look like splits, beside {strange[0]!r}, "
                    "which does not; give the path of one of them"
                )
            by_split: dict[str, list[str]] = {}
            for name, p in zip(names, parts, strict=True):
                by_split.setdefault(split_of[p[depth]], []).append(name)
            names, chosen, unread = splits.choose(by_split, split, path)
            for other, more in unread.items():
                left.add(f"images of the split {other}", *more)
            parts = [parts_of(name) for name in names]
        else:
            break
        depth += 1
    if not chosen:
        splits.check_none(split, path)
    elif splits.known(split) not in ("", splits.ALL, chosen):
        raise UsageError(f"{path} has no split {splits.known(split)!r}; it has {chosen}")
    notes = _without_images(folders, others, parts, with_images, depth, path)
    loose = [name for name, p in zip(names, parts, strict=True) if len(p) == depth + 1]
    if len(loose) == len(names):
        labels = np.zeros(len(names), np.int64)
        return Tree(names, labels, (as_text(path.stem),), chosen, notes, left.unused())
    if loose:
        raise UsageError(f"{path}: {loose[0]} is beside the class folders; move it into one of them")
    labels, class_names = _numbered_words([p[depth] for p in parts])
    twice, count = Counter(class_names).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{path}: two class folders would be named {twice!r}; rename one of them")
    return Tree(names, labels, class_names, chosen, (*notes, *_nested(parts, depth)), left.unused())


def _without_images(
    folders: Iterable[str],
    others: Sequence[str],
    parts: Sequence[tuple[str, ...]],
    with_images: set[tuple[str, ...]],
    depth: int,
    path: Path,
) -> tuple[str, ...]:
    """Notes on folders without images in the place of classes. Raises UsageError if one may be meant as a
    class: if it has no files, or pictures in unsupported formats."""
    parents = {p[:k] for p in parts for k in range(depth + 1)}
    candidates = {parts_of(folder) for folder in folders}
    candidates |= {parts_of(name)[:k] for name in others for k in range(1, len(parts_of(name)))}
    notes = []
    for folder in sorted(candidates - with_images):
        if not folder or len(folder) > depth + 1 or folder[:-1] not in parents:
            continue
        inside = [name for name in others if parts_of(name)[: len(folder)] == folder]
        name = "/".join(folder)
        unread = [picture for picture in inside if kind_of(picture) == PICTURE]
        if unread:
            raise UsageError(
                f"class {folder[-1]!r} has no images that can be read ({path}: {unread[0]}); convert them "
                "to PNG, or remove the folder"
            )
        if not inside:
            raise UsageError(f"class {folder[-1]!r} has no images: {path / name}; fill or remove it")
        notes.append(f"the folder {name} contains no images and is not used as a class")
    return tuple(notes)


def _nested(parts: Sequence[tuple[str, ...]], depth: int) -> tuple[str, ...]:
    """A note on classes whose images come from several folders."""
    inside: dict[str, set[str]] = {}
    for p in parts:
        inside.setdefault(p[depth], set()).add("/".join(p[depth + 1 : -1]))
    joined = sorted((name for name, folders in inside.items() if len(folders) > 1), key=natural_key)
    if not joined:
        return ()
    folders = sorted(f"{joined[0]}/{inner}".rstrip("/") for inner in inside[joined[0]])
    more = len(joined) - 1
    also = f" (and likewise {more} more {'class' if more == 1 else 'classes'})" if more else ""
    return (f"folders inside a class folder are one class: {first(folders)} are all {joined[0]!r}{also}",)


def _instead(others: Sequence[str]) -> str:
    """What a set without images contains instead."""
    if not others:
        return ""
    archive = next((name for name in others if suffix_of(name) in ARCHIVES), None)
    if archive is not None:
        return f"; inside a folder, only .tar archives are read: unpack {archive}, or give its path"
    return f"; it contains {first(others)}"


def _numbered_words(words: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels, class names) of words, numbered in natural order."""
    names = sorted(set(words), key=natural_key)
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[word] for word in words], np.int64), tuple(map(as_text, names))


def numbered(
    labels: Sequence[object], names: Mapping[int, str] | None, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels (N,) int64, class names) of the labels in a file: words, or whole numbers.

    names: of the numbers, if they have names. Raises UsageError if labels are mixed or of another type, a
    number has no name, or a class has no images.
    """
    if labels and all(isinstance(label, str) for label in labels):
        return _numbered_words([str(label) for label in labels])
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int):
            mixed = (
                "; some labels are numbers and some are words; use one kind" if isinstance(label, str) else ""
            )
            raise UsageError(f"{path} has the label {shown(label)}; labels are whole numbers or words{mixed}")
        if not -(1 << 63) <= label < 1 << 63:
            raise UsageError(f"{path} has the label {shown(label)}, which is not a class number")
    numbers = np.array(labels, np.int64)
    present = np.unique(numbers)  # unlike bincount, takes no memory for large numbers
    count = len(names) if names is not None else int(present[-1]) + 1 if len(present) else 0
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        valid = f"its classes are 0..{count - 1}" if names is not None else "classes are numbered from 0"
        raise UsageError(f"{path} has the label {int(outside[0])}; {valid}")
    if len(present) < count:
        gaps = np.flatnonzero(present != np.arange(len(present)))
        missing = int(gaps[0]) if len(gaps) else len(present)
        name = names[missing] if names is not None else str(missing)
        raise UsageError(f"{path}: class {name!r} has no images; its labels go up to {int(present[-1])}")
    return numbers, tuple(as_text(names[i]) if names is not None else str(i) for i in range(count))


def check_size(size: int, name: str) -> None:
    """Raises BadImage if a file is too large to be one image."""
    if size > LARGEST_FILE:
        raise BadImage(f"{name} has {size / 1e6:.0f} MB, which is more than {LARGEST_FILE / 1e6:.0f}")
