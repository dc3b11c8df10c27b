"""Tar shards, read where they lie: an entry's bytes are found by its offset, in any order.

KEY.jpg  KEY.cls (a class number)  or  KEY.json ({"label": ...})      WebDataset: files that share a key
CLASS/image.jpg                                                       a tree in a tar
classes.txt beside the shards                                         the classes' names, one per line

A key ends at the first dot of the file's name. A sample has one image: the only one, KEY.jpg before
KEY.mask.png, or the one that is asked for.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from scaledit.data import splits
from scaledit.data.decode import SUFFIXES, BadImage
from scaledit.data.layout import CLASSES
from scaledit.data.names import decoded, hidden, lines, parts_of, suffix_of
from scaledit.data.sources import Source, by_folder, check_size, numbered
from scaledit.data.unused import HIDDEN, SHOWN, LeftOut
from scaledit.errors import UsageError, reading

LABEL_KEYS = ("label", "cls", "class")
END = bytes(512)
LARGEST_LABEL = 1 << 20
"""Bytes of a .cls or .json."""
BLOCK = 1 << 20
HOPS = 16
"""Links that are followed from one to the next."""
OTHER_IMAGE, NO_IMAGE, TWICE, LINKS, NOT_PLAIN = (
    "other images of a sample",
    "labels of no image",
    "earlier files of the same name",
    "links to what is not in the shard",
    "neither files nor folders",
)


class Key(NamedTuple):
    """WebDataset's: the files of one sample share it."""

    shard: int
    name: str


class Place(NamedTuple):
    """Bytes in a shard."""

    shard: int
    offset: int
    size: int


class Image(NamedTuple):
    """name: the whole, as in the shard. member: what follows the key's dot."""

    name: str
    key: Key
    member: str
    place: Place


def open_shards(
    path: Path,
    shards: list[Path],
    *,
    split: str = "",
    within: str = "",
    image_key: str = "",
    left: LeftOut | None = None,
) -> Source:
    """split: of the shards. within: the split that is wanted of trees inside them. image_key: see
    `open_source`.

    Raises UsageError naming a shard that is corrupt, an image without a label, and a sample of several images
    none of which is said to be the one.
    """
    left = LeftOut() if left is None else left
    files = [shard.open("rb") for shard in shards]

    def bytes_at(place: Place) -> bytes:
        data = os.pread(files[place.shard].fileno(), place.size, place.offset)
        if len(data) != place.size:
            raise BadImage(f"{shards[place.shard]} is cut short")
        return data

    images: list[Image] = []
    given: dict[Key, dict[str, tuple[str, Place]]] = {}  # .cls and .json of a key
    others: list[str] = []
    folders: list[str] = []
    for k, shard in enumerate(shards):
        for name, place in _members(k, shard, folders, left):
            key, member = _split(k, name)
            suffix = suffix_of(name)
            if suffix in SUFFIXES:
                images.append(Image(name, key, member, place))
            elif suffix in (".cls", ".json"):
                given.setdefault(key, {})[suffix] = name, place
            else:
                others.append(name)
    keys = {image.key for image in images}
    for key in sorted(given.keys() - keys):
        left.add(NO_IMAGE, *sorted(name for name, _ in given.pop(key).values()))

    def label(key: Key) -> int | str | None:
        """The number in its .cls, else what its .json says."""
        found = given.get(key, {})
        for suffix in (".cls", ".json"):
            if suffix in found:
                name, place = found[suffix]
                where = f"{shards[key.shard]}: {name}"
                if place.size > LARGEST_LABEL:
                    raise UsageError(f"{where} has {place.size} bytes; that is no label")
                return _label(bytes_at(place), suffix, where)
        return None

    if given:
        splits.none_inside(within, path)
        left.by_kind(others)
        images = _one_each(images, image_key, path, left)
        labels = [label(image.key) for image in images]
        if None in labels:
            name = images[labels.index(None)].name
            raise UsageError(f"{path}: {name} has no label (a .cls or .json of the same name)")
        if len({type(one) for one in labels}) > 1:
            raise UsageError(f"{path}: some labels are numbers, some are words")
        words = isinstance(labels[0], str)
        named, notes = (None, _unused_list(path, shards)) if words else _class_names(path, shards)
        found, classes = numbered(labels, named, path)
        names = [f"{shards[image.key.shard].name}/{image.name}" for image in images]
    else:
        if image_key:
            images = _one_each(images, image_key, path, left)
        images.sort()
        # In several shards one name may stand for several images.
        tree = by_folder([*(i.name for i in images), *others], folders, path, within, left)
        images = _in_order(images, tree.names)
        names, found, classes, words = tree.names, tree.labels, tree.class_names, True
        notes = (*tree.notes, *_unused_list(path, shards))
        split = split or tree.split

    def read(i: int) -> bytes:
        place = images[i].place
        check_size(place.size, names[i])
        return bytes_at(place)

    return Source(
        path,
        "tar shards",
        classes,
        names,
        found,
        read,
        unused=left.found(),
        notes=notes,
        split=split,
        by_name=words,
    )


def _in_order(images: list[Image], names: list[str]) -> list[Image]:
    """The images that bear these names, which are in order, as the images are."""
    kept, at = [], 0
    for name in names:
        while images[at].name != name:
            at += 1
        kept.append(images[at])
        at += 1
    return kept


def _one_each(images: list[Image], image_key: str, path: Path, left: LeftOut) -> list[Image]:
    """One image of each key. Raises UsageError where it is not known which."""
    by_key: dict[Key, list[Image]] = {}
    for image in images:
        by_key.setdefault(image.key, []).append(image)
    kept = []
    for some in by_key.values():
        if image_key:
            right = [image for image in some if image.member.lower() == image_key.lower().lstrip(".")]
        elif len(some) > 1:
            right = [image for image in some if "." not in image.member]
        else:
            right = some
        if len(right) != 1:
            there = ", ".join(image.name for image in some[:SHOWN])
            what = f"{len(right) or 'no'} images of the key {image_key!r}" if image_key else "several images"
            raise UsageError(
                f"{path}: the sample {some[0].key.name} has {what} ({there}; a key ends at the first dot of "
                f"the name); say which with --image-key or data.image_key, as in {some[0].member!r}"
            )
        kept.append(right[0])
        left.add(OTHER_IMAGE, *(image.name for image in some if image is not right[0]))
    return kept


def _members(k: int, shard: Path, folders: list[str], left: LeftOut) -> Iterator[tuple[str, Place]]:
    """Every file of a shard by its headers alone, in the order of the shard; links inside it followed."""
    found: dict[str, Place | str] = {}  # a string: a link to that name
    size = shard.stat().st_size
    with reading(shard, "a tar archive", error=UsageError):
        try:
            end = _headers(k, shard, size, found, folders, left)
        except (tarfile.TarError, EOFError) as error:
            raise UsageError(f"{shard} is no tar archive, or is corrupt ({error})") from None
    with shard.open("rb") as file:
        file.seek(max(0, size - len(END)))
        if file.read() != END:
            raise UsageError(f"{shard} is cut short: a tar archive ends in zeros")
        file.seek(end)
        while block := file.read(BLOCK):
            if block.count(0) != len(block):
                raise UsageError(
                    f"{shard} goes on after the end of its archive: it is corrupt, or several archives were "
                    "joined; pack it anew"
                )
    for name, place in found.items():
        for _ in range(HOPS):
            if not isinstance(place, str):
                break
            place = found.get(place, "")
        if isinstance(place, Place):
            yield name, place
        else:
            left.add(LINKS, name)


def _headers(
    k: int, shard: Path, size: int, found: dict[str, Place | str], folders: list[str], left: LeftOut
) -> int:
    """Reads the headers of a shard into `found` and `folders`; where its last member ends."""
    with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        # It ends alike at a corrupt header and at the archive's end: the caller looks at what follows.
        while (member := archive.next()) is not None:
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            name, parts = member.name, parts_of(member.name)
            if member.issparse():
                raise UsageError(f"{shard}: {name} is stored with holes; pack it without --sparse")
            if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                raise UsageError(f"{shard} is corrupt, or cut short: {name} has {member.size} bytes")
            if member.isdir():
                if not hidden(parts):
                    folders.append(name)
            elif hidden(parts) or not parts:
                left.add(HIDDEN, name)
            elif member.isfile() or member.islnk() or member.issym():
                if name in found:
                    left.add(TWICE, name)
                    del found[name]
                if member.isfile():
                    found[name] = Place(k, member.offset_data, member.size)
                elif member.islnk():
                    # To what stands before it under that name, as unpacking would have it.
                    found[name] = found.get(member.linkname, member.linkname)
                else:
                    found[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            else:
                left.add(NOT_PLAIN, name)
        return archive.offset


def _split(shard: int, name: str) -> tuple[Key, str]:
    """The key (a name up to the first dot of its last part), and what follows the dot."""
    folder, slash, base = name.rpartition("/")
    key, _, member = base.partition(".")
    return Key(shard, f"{folder}{slash}{key}"), member


def _label(data: bytes, suffix: str, where: str) -> int | str:
    try:
        if suffix == ".cls":
            text = decoded(data)[0].strip()
            if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
                raise ValueError(text)
            return int(text)
        value = json.loads(data)
        label = next(value[key] for key in LABEL_KEYS if key in value)
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(label)
        return label
    except (ValueError, TypeError, StopIteration, RecursionError):
        wanted = "a whole number" if suffix == ".cls" else f"a JSON object with {' or '.join(LABEL_KEYS)}"
        raise UsageError(f"{where} is not {wanted}") from None


def _class_list(path: Path, shards: list[Path]) -> Path | None:
    """classes.txt in the set's folder, or beside the shards."""
    places = [path if path.is_dir() else path.parent, *{shard.parent: None for shard in shards}]
    return next((folder / CLASSES for folder in places if (folder / CLASSES).is_file()), None)


def _unused_list(path: Path, shards: list[Path]) -> tuple[str, ...]:
    """A note on a list of names for classes that have names of their own."""
    file = _class_list(path, shards)
    return () if file is None else (f"{file} is not used: the classes have names of their own",)


def _class_names(path: Path, shards: list[Path]) -> tuple[Mapping[int, str] | None, tuple[str, ...]]:
    """(the names in classes.txt, which are those of numbers; notes)."""
    file = _class_list(path, shards)
    if file is None:
        return None, ()
    names, encoding = lines(file)
    if not names:
        raise UsageError(f"{file} names no classes; write one per line, or remove it")
    guessed = (f"{file} is not UTF-8 and is read as {encoding}",) if encoding == "Latin-1" else ()
    return dict(enumerate(names)), guessed
