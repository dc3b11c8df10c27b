"""Tar shards, read in place: the bytes of an entry are read by their offset, in any order.

KEY.jpg  KEY.cls (a class number)  or  KEY.json ({"label": ...})      WebDataset: files that share a key
CLASS/image.jpg                                                       a tree in a tar
classes.txt beside the shards                                         the classes' names, one per line

A key ends at the first dot of the file's name. A sample has one image: the only one, KEY.jpg rather than
KEY.mask.png, or the one that `image_key` selects.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from scaledit.data import splits
from scaledit.data.decode import SUFFIXES, BadImage
from scaledit.data.layout import CLASSES
from scaledit.data.names import decoded, hidden, lines, parts_of, suffix_of
from scaledit.data.sources import Source, by_folder, check_size, numbered
from scaledit.data.unused import HIDDEN, NOT_PLAIN, SHOWN, TWICE, LeftOut
from scaledit.errors import UsageError, reading

LABEL_KEYS = ("label", "cls", "class")
END = bytes(512)
LARGEST_LABEL = 1 << 20
"""Maximum bytes of a .cls or .json."""
BLOCK = 1 << 20
HOPS = 16
"""Maximum length of a chain of links."""
OTHER_IMAGE, NO_IMAGE = "other images of a sample", "labels of no image"
LINKS = "links to what is not in the shard"


class Key(NamedTuple):
    """WebDataset's key, which the files of one sample share."""

    shard: int
    name: str


class Place(NamedTuple):
    """Bytes in a shard."""

    shard: int
    offset: int
    size: int


class Image(NamedTuple):
    """name: the full name in the shard. member: what follows the key and its dot."""

    name: str
    key: Key
    member: str
    place: Place


def open_shards(
    path: Path, shards: list[Path], split: str, inner_split: str, image_key: str, left: LeftOut
) -> Source:
    """The images in `shards`, which belong to `split`. path: of the set. inner_split: the split to read of
    trees inside the shards. image_key: see `open_source`. left: files that are not used.

    Raises UsageError naming a shard that is corrupt, an image without a label, or a sample with several
    images among which `image_key` does not select one.
    """
    handles = [shard.open("rb") for shard in shards]

    def bytes_at(place: Place) -> bytes:
        data = os.pread(handles[place.shard].fileno(), place.size, place.offset)
        if len(data) != place.size:
            raise BadImage(f"{shards[place.shard]} is cut short")
        return data

    images: list[Image] = []
    labels_of: dict[Key, dict[str, tuple[str, Place]]] = defaultdict(dict)  # .cls and .json of a key
    others: list[str] = []
    folders: list[str] = []
    for k, shard in enumerate(shards):
        for name, place in _members(k, shard, folders, left):
            folder, slash, base = name.rpartition("/")
            stem, _, member = base.partition(".")
            key, suffix = Key(k, f"{folder}{slash}{stem}"), suffix_of(name)
            if suffix in SUFFIXES:
                images.append(Image(name, key, member, place))
            elif suffix in (".cls", ".json"):
                labels_of[key][suffix] = name, place
            else:
                others.append(name)
    for key in sorted(labels_of.keys() - {image.key for image in images}):
        left.add(NO_IMAGE, *sorted(name for name, _ in labels_of.pop(key).values()))

    def label(image: Image) -> int | str:
        files = labels_of.get(image.key)
        if files is None:
            raise UsageError(f"{path}: {image.name} has no label (a .cls or .json of the same name)")
        suffix = min(files)  # .cls counts before .json
        name, place = files[suffix]
        where = f"{shards[place.shard]}: {name}"
        if place.size > LARGEST_LABEL:
            raise UsageError(f"{where} has {place.size} bytes, which is too large for a label")
        return _label(bytes_at(place), suffix, where)

    beside = (path if path.is_dir() else path.parent, *(shard.parent for shard in shards))
    class_list = next((parent / CLASSES for parent in beside if (parent / CLASSES).is_file()), None)
    unused_list = (f"{class_list} is not used: the classes have names of their own",) if class_list else ()
    if labels_of:
        splits.check_none(inner_split, path)
        left.by_kind(others)
        images = _one_each(images, image_key, path, left)
        labels = [label(image) for image in images]
        if len({type(value) for value in labels}) > 1:
            raise UsageError(f"{path}: some labels are numbers and some are words; use one kind")
        words = isinstance(labels[0], str)
        class_names, notes = (None, unused_list) if words else _class_names(class_list)
        numbers, classes = numbered(labels, class_names, path)
        names = [f"{shards[image.key.shard].name}/{image.name}" for image in images]
    else:
        if image_key:
            images = _one_each(images, image_key, path, left)
        images.sort()
        # One name may belong to several images, in several shards.
        tree = by_folder([*(i.name for i in images), *others], folders, path, inner_split, left)
        images = _in_order(images, tree.names)
        names, numbers, classes, words = tree.names, tree.labels, tree.class_names, True
        notes = (*tree.notes, *unused_list)
        split = split or tree.split

    def read(i: int) -> bytes:
        place = images[i].place
        check_size(place.size, names[i])
        return bytes_at(place)

    unused = left.unused()
    return Source(path, "tar shards", classes, names, numbers, read, unused, notes, split, by_name=words)


def _in_order(images: list[Image], names: list[str]) -> list[Image]:
    """The images with these names; both lists are sorted by name."""
    remaining = iter(images)
    return [next(image for image in remaining if image.name == name) for name in names]


def _one_each(images: list[Image], image_key: str, path: Path, left: LeftOut) -> list[Image]:
    """One image of each key. Raises UsageError if the choice is ambiguous."""
    by_key: dict[Key, list[Image]] = defaultdict(list)
    for image in images:
        by_key[image.key].append(image)
    chosen = []
    for key, some in by_key.items():
        if image_key:
            candidates = [image for image in some if image.member.lower() == image_key.lower().lstrip(".")]
            problem = f"{len(candidates) or 'no'} images of the key {image_key!r}"
        else:
            candidates = [image for image in some if "." not in image.member or len(some) == 1]
            problem = "several images"
        if len(candidates) != 1:
            names = ", ".join(image.name for image in some[:SHOWN])
            raise UsageError(
                f"{path}: the sample {key.name} has {problem} ({names}; a key ends at the first dot of the "
                f"name); choose one with --image-key or data.image_key, as in {some[0].member!r}"
            )
        chosen += candidates
        left.add(OTHER_IMAGE, *(image.name for image in some if image is not candidates[0]))
    return chosen


def _members(k: int, shard: Path, folders: list[str], left: LeftOut) -> Iterator[tuple[str, Place]]:
    """Every file of a shard in its order, by the headers alone. Links inside the shard are followed."""
    places: dict[str, Place | str] = {}  # a string is a link to that name
    size = shard.stat().st_size
    with reading(shard, "a tar archive", error=UsageError):
        try:
            end = _headers(k, shard, size, places, folders, left)
        except (tarfile.TarError, EOFError) as error:
            raise UsageError(f"{shard} is not a tar archive, or is corrupt ({error})") from None
    with shard.open("rb") as file:
        file.seek(max(0, size - len(END)))
        if file.read() != END:
            raise UsageError(f"{shard} is truncated: a tar archive must end with zero bytes")
        file.seek(end)
        while block := file.read(BLOCK):
            if block.count(0) != len(block):
                raise UsageError(
                    f"{shard} has data after the end of the archive: it is corrupt, or several archives were "
                    "concatenated; create it again"
                )
    for name, place in places.items():
        for _ in range(HOPS):
            if not isinstance(place, str):
                break
            place = places.get(place, "")
        if isinstance(place, Place):
            yield name, place
        else:
            left.add(LINKS, name)


def _headers(
    k: int, shard: Path, size: int, places: dict[str, Place | str], folders: list[str], left: LeftOut
) -> int:
    """Reads the headers of a shard into `places` and `folders`. Returns the end of its last member."""
    with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        # tarfile stops at a corrupt header as at the end of the archive; the caller checks what follows.
        while (member := archive.next()) is not None:
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            name, parts = member.name, parts_of(member.name)
            if member.issparse():
                raise UsageError(
                    f"{shard}: {name} is stored as a sparse file; create the archive without --sparse"
                )
            if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                raise UsageError(f"{shard} is corrupt, or cut short: {name} has {member.size} bytes")
            if member.isdir():
                if not hidden(parts):
                    folders.append(name)
            elif hidden(parts) or not parts:
                left.add(HIDDEN, name)
            elif member.isfile() or member.islnk() or member.issym():
                if name in places:
                    left.add(TWICE, name)
                    del places[name]
                if member.isfile():
                    places[name] = Place(k, member.offset_data, member.size)
                elif member.islnk():
                    # As when unpacking, this is the last earlier file of that name.
                    places[name] = places.get(member.linkname, member.linkname)
                else:
                    places[name] = posixpath.normpath(
                        posixpath.join(posixpath.dirname(name), member.linkname)
                    )
            else:
                left.add(NOT_PLAIN, name)
        return archive.offset


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
        expected = "a whole number" if suffix == ".cls" else f"a JSON object with {' or '.join(LABEL_KEYS)}"
        raise UsageError(f"{where} is not {expected}") from None


def _class_names(class_list: Path | None) -> tuple[Mapping[int, str] | None, tuple[str, ...]]:
    """(the names of numbered classes in classes.txt, notes)."""
    if class_list is None:
        return None, ()
    names, encoding = lines(class_list)
    if not names:
        raise UsageError(f"{class_list} contains no class names; write one per line, or remove the file")
    guessed = (f"{class_list} is not UTF-8 and is read as {encoding}",) if encoding == "Latin-1" else ()
    return dict(enumerate(names)), guessed
