"""Where labelled images lie: one folder per class, tar shards, Parquet, a single archive.

    PATH --open_source--> Source: entry i has a name, a class, and bytes to be read; and what was left out

    folder/CLASS/**/image         a tree             archive.zip, archive.tar   the same inside an archive
    folder/**/*.tar               WebDataset's shards (`tars`)
    folder/**/*.parquet, *.arrow  Hugging Face's datasets (`tables`)

Which of these a folder is: `layout`. Which part of it is read where there are splits: `splits`. Entries come
in the order of their names, the same on every machine; classes that are named in natural order (2, 10).
Nothing is unpacked to the disk.
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
from scaledit.data.unused import ARCHIVES, PICTURE, SHOWN, TABLES, LeftOut, Unused, kind_of
from scaledit.errors import UsageError

LARGEST_FILE = 1 << 28
"""Bytes of one encoded image; more is refused before it is read."""
PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".7z", ".rar")


@dataclass(frozen=True)
class Source:
    """names, labels: of each entry; labels (N,) int64 into class_names. read(i): its bytes (raises BadImage);
    safe to call from several threads.

    unused: what lies there and is left out. notes: what else people may not expect. split: the one that is
    read, "" where there are none. by_name: classes are numbered in the order of their names.
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
        """SHA-256 of names and classes in order; of no bytes of images."""
        digest = hashlib.sha256(b"\0".join(map(encoded, self.class_names)))
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            digest.update(b"\0%s\0%d" % (encoded(name), label))
        return digest.hexdigest()

    def with_classes(self, class_names: tuple[str, ...]) -> Source:
        """The same classes under other numbers. Raises ValueError where they are not the same."""
        number = {name: i for i, name in enumerate(class_names)}
        if sorted(class_names) != sorted(self.class_names) or len(number) != len(class_names):
            raise ValueError(class_names)
        now = np.array([number[name] for name in self.class_names], np.int64)
        return replace(self, class_names=class_names, labels=now[self.labels])

    def legacy(self) -> Source:
        """With its classes numbered as earlier versions did, by their text: 10 before 2. An encoding that one
        of them began is continued so."""
        return self.with_classes(tuple(sorted(self.class_names))) if self.by_name else self

    def remarks(self) -> tuple[str, ...]:
        """What a person who trains on it should know, a line each: the split, what is left out, notes."""
        said = [f"of {self.path} the split {self.split} is read"] if self.split else []
        if self.unused:
            said.append(
                f"of {self.path} not used: {'; '.join(map(str, self.unused))} "
                "(scaledit data inspect lists more)"
            )
        return (*said, *self.notes)


def open_source(path: str | Path, split: str = "", image_key: str = "") -> Source:
    """The Source at `path`.

    split: the one to read where there are several; "" is train, "all" all of them as one. image_key: which
    member of a WebDataset sample is the image, by what follows the key ("jpg", "input.png"); "" is the only
    one, or the one whose name has one dot.

    Raises UsageError for a path that holds no images, that may be two sets, a class without images, or labels
    that are no classes.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no {path}")
    from scaledit.data import tables, tars, zips

    suffix = suffix_of(path.name)
    if path.is_dir():
        return _open_folder(path, split, image_key)
    _no_image_key(path, image_key, needed=suffix not in layout.TARS)
    if suffix in PACKED:
        raise UsageError(f"{path} is compressed as a whole, so no image in it can be found alone; unpack it")
    if suffix == ".zip":
        return zips.open_zip(path, split)
    if suffix in layout.TARS:
        own = splits.of_file(path.name)
        if own:
            splits.choose({own: [path.name]}, split, path)
        return tars.open_shards(path, [path], split=own, within="" if own else split, image_key=image_key)
    if suffix in TABLES:
        chosen = splits.choose(splits.grouped([path.name]), split, path)
        return tables.open_tables(path, [path], split=chosen.name)
    raise UsageError(
        f"{path} is no set of images; give a folder with one folder per class, .tar shards, .parquet files "
        "or a .zip"
    )


def _open_folder(folder: Path, split: str, image_key: str) -> Source:
    from scaledit.data import tables, tars

    left = LeftOut()
    listing = layout.walk(folder, left)
    found = layout.decide(folder, listing, left)
    _no_image_key(folder, image_key, needed=found.kind not in layout.TARS)
    if found.kind == "tree":
        return open_tree(folder, listing, split, left)
    by_split = splits.grouped(found.files)
    # Shards that are not split may hold folders that are.
    within = split if set(by_split) == {""} and found.kind in layout.TARS else ""
    chosen = splits.choose(by_split, "" if within else split, folder)
    used = {*found.files, *found.told, *(name for name in listing.files if _belongs(name, found.kind))}
    left.by_kind(name for name in listing.files if name not in used)
    for other, names in chosen.others.items():
        left.add(f"files of the split {other}" if other else "files of no split", *names)
    files = [folder / name for name in chosen.files]
    if found.kind in layout.TARS:
        return tars.open_shards(
            folder, files, split=chosen.name, within=within, image_key=image_key, left=left
        )
    return tables.open_tables(folder, files, split=chosen.name, left=left)


def _belongs(name: str, kind: str) -> bool:
    """Whether a file is part of a set of that kind though it is no shard or table."""
    base = name.rpartition("/")[2]
    if kind in layout.TARS:
        return base == layout.CLASSES
    return base in (layout.STATE, "dataset_info.json", "dataset_dict.json")


def _no_image_key(path: Path, image_key: str, needed: bool) -> None:
    if image_key and needed:
        raise UsageError(f"an image key ({image_key}) is of WebDataset's tar shards; {path} holds none")


def open_tree(folder: Path, listing: layout.Listing, split: str, left: LeftOut) -> Source:
    """One folder per class; images directly in `folder` are one class of its name."""
    tree = by_folder(listing.files, listing.folders, folder, split, left)

    def read(i: int) -> bytes:
        file = folder / tree.names[i]
        check_size(file.stat().st_size, tree.names[i])
        return file.read_bytes()

    return Source(folder, "folder", **tree.fields(), read=read)


class Tree(NamedTuple):
    """Images whose folders are their classes."""

    names: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    split: str
    notes: tuple[str, ...]
    left: LeftOut

    def fields(self) -> dict:
        """As a Source's."""
        return {
            "names": self.names,
            "labels": self.labels,
            "class_names": self.class_names,
            "split": self.split,
            "notes": self.notes,
            "unused": self.left.found(),
            "by_name": True,
        }


def by_folder(files: Iterable[str], folders: Iterable[str], where: Path, split: str, left: LeftOut) -> Tree:
    """The images among `files` by their class folders.

    One folder around all classes is looked through; folders that are splits are told by their names
    (`splits`), and one of them is read. Images without any folder are one class, named after the set. Folders
    in a class folder are all of that class.

    Raises UsageError for no images, images beside the class folders, splits beside other folders, and a
    folder without any file, or with pictures that cannot be read, where a class would be.
    """
    files = sorted(files)
    names = [name for name in files if suffix_of(name) in SUFFIXES]
    others = [name for name in files if suffix_of(name) not in SUFFIXES]
    left.by_kind(others)
    if not names:
        raise UsageError(f"{where} holds no images ({', '.join(SUFFIXES)}){_instead(others)}")
    parts = [parts_of(name) for name in names]
    has_images = {p[:k] for p in parts for k in range(len(p))}
    around, found = 0, ""
    while all(len(p) > around + 1 for p in parts):
        tops = {p[around] for p in parts}
        of_top = {top: splits.of_folder(top) for top in tops}
        if len(tops) == 1 and all(len(p) > around + 2 for p in parts):
            found = found or "".join(of_top.values())
        elif len(set(of_top.values()) - {""}) > 1 and not found:
            strange = sorted(top for top, of in of_top.items() if not of)
            if strange:
                there = sorted(top for top, of in of_top.items() if of)
                raise UsageError(
                    f"{where} has the folders {', '.join(there)}, which look like splits, beside "
                    f"{strange[0]!r}, which does not; give the path of one of them"
                )
            by_split: dict[str, list[str]] = {}
            for name, p in zip(names, parts, strict=True):
                by_split.setdefault(of_top[p[around]], []).append(name)
            names, found, rest = splits.choose(by_split, split, where)
            for other, more in rest.items():
                left.add(f"images of the split {other}", *more)
            parts = [parts_of(name) for name in names]
        else:
            break
        around += 1
    wanted = splits.known(split)
    if not found:
        splits.none_inside(split, where)
    elif wanted not in ("", splits.ALL, found):
        raise UsageError(f"{where} has no split {wanted!r}; it has {found}")
    notes = _without_images(folders, others, parts, has_images, around, where, left)
    loose = [name for name, p in zip(names, parts, strict=True) if len(p) == around + 1]
    if len(loose) == len(names):
        return Tree(names, np.zeros(len(names), np.int64), (as_text(where.stem),), found, notes, left)
    if loose:
        raise UsageError(f"{where}: {loose[0]} lies beside the classes' folders; put it into one")
    of_class = [p[around] for p in parts]
    raw = sorted(set(of_class), key=natural_key)
    number = {name: i for i, name in enumerate(raw)}
    classes = tuple(map(as_text, raw))
    if len(set(classes)) < len(classes):
        twice = next(name for name, count in Counter(classes).items() if count > 1)
        raise UsageError(f"{where}: two class folders would be named {twice!r}; rename one of them")
    labels = np.array([number[name] for name in of_class], np.int64)
    return Tree(names, labels, classes, found, (*notes, *_nested(parts, around)), left)


def _without_images(
    folders: Iterable[str],
    others: Sequence[str],
    parts: Sequence[tuple[str, ...]],
    has_images: set[tuple[str, ...]],
    around: int,
    where: Path,
    left: LeftOut,
) -> tuple[str, ...]:
    """Notes on folders that lie where classes do and have no image. Raises UsageError where one may be meant
    as a class: without any file, or with pictures that cannot be read."""
    read = {p[:k] for p in parts for k in range(around + 1)}
    there = {parts_of(folder) for folder in folders}
    there |= {parts_of(name)[:k] for name in others for k in range(1, len(parts_of(name)))}
    notes = []
    for folder in sorted(there):
        if not folder or len(folder) > around + 1 or folder[:-1] not in read or folder in has_images:
            continue
        inside = [name for name in others if parts_of(name)[: len(folder)] == folder]
        shown = "/".join(folder)
        unread = [name for name in inside if kind_of(name) == PICTURE]
        if unread:
            raise UsageError(
                f"class {folder[-1]!r} has no images that can be read ({where}: {unread[0]}); convert them "
                "to PNG, or remove the folder"
            )
        if not inside:
            raise UsageError(f"class {folder[-1]!r} has no images: {where / shown}; fill or remove it")
        notes.append(f"the folder {shown} holds no images and is no class")
    return tuple(notes)


def _nested(parts: Sequence[tuple[str, ...]], around: int) -> tuple[str, ...]:
    """A note on classes whose images come from several folders."""
    inside: dict[str, set[str]] = {}
    for p in parts:
        inside.setdefault(p[around], set()).add("/".join(p[around + 1 : -1]))
    joined = sorted((name for name, some in inside.items() if len(some) > 1), key=natural_key)
    if not joined:
        return ()
    first = sorted(f"{joined[0]}/{inner}".rstrip("/") for inner in inside[joined[0]])
    more = f", and of {len(joined) - 1} more classes alike" if len(joined) > 2 else ""
    more = ", and of 1 more class alike" if len(joined) == 2 else more
    return (
        f"folders inside a class folder are one class: the images of {', '.join(first[:SHOWN])}"
        f"{', ...' if len(first) > SHOWN else ''} are all {joined[0]!r}{more}",
    )


def _instead(others: Sequence[str]) -> str:
    """What there is where there are no images."""
    if not others:
        return ""
    archive = next((name for name in others if suffix_of(name) in ARCHIVES), None)
    if archive is not None:
        return f"; of archives only .tar are read inside a folder: unpack {archive}, or give its path"
    return f"; it holds {', '.join(others[:SHOWN])}{', ...' if len(others) > SHOWN else ''}"


def numbered(
    labels: Sequence[object], names: Mapping[int, str] | None, where: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels (N,) int64, class names) of labels as a file gives them: words, or numbers with or without
    names. Raises UsageError for labels that are neither, a number without a name, and a class without
    images."""
    if labels and all(isinstance(label, str) for label in labels):
        words = [str(label) for label in labels]
        raw = sorted(set(words), key=natural_key)
        number = {name: i for i, name in enumerate(raw)}
        return np.array([number[word] for word in words], np.int64), tuple(map(as_text, raw))
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int):
            mixed = "; some labels are numbers, some are words" if isinstance(label, str) else ""
            raise UsageError(
                f"{where} has the label {_short(label)}; labels are whole numbers or words{mixed}"
            )
        if not -(1 << 63) <= label < 1 << 63:
            raise UsageError(f"{where} has the label {_short(label)}, which is no class number")
    found = np.array(labels, np.int64)
    # Which numbers there are, not how large they are, decides what is allocated.
    there = np.unique(found)
    count = len(names) if names is not None else int(there[-1]) + 1 if len(there) else 0
    wrong = found[(found < 0) | (found >= count)]
    if len(wrong):
        said = f"its classes are 0..{count - 1}" if names is not None else "classes are numbered from 0"
        raise UsageError(f"{where} has the label {int(wrong[0])}; {said}")
    if len(there) < count:
        gaps = np.flatnonzero(there != np.arange(len(there)))
        missing = int(gaps[0]) if len(gaps) else len(there)
        name = names[missing] if names is not None else str(missing)
        raise UsageError(f"{where}: class {name!r} has no images; its labels go up to {int(there[-1])}")
    return found, tuple(as_text(names[i]) if names is not None else str(i) for i in range(count))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_size(size: int, name: str) -> None:
    """Raises BadImage for a file too large to be one image."""
    if size > LARGEST_FILE:
        raise BadImage(f"{name} has {size / 1e6:.0f} MB, more than {LARGEST_FILE / 1e6:.0f}")
