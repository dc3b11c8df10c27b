"""Tar shards, read where they lie: an entry's bytes are found by its offset, in any order.

KEY.jpg  KEY.cls (a class number)  or  KEY.json ({"label": ...})      WebDataset: files that share a key
CLASS/image.jpg                                                       a tree in a tar
classes.txt beside the shards                                         the classes' names, one a line
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scaledit.data.decode import SUFFIXES, BadImage
from scaledit.data.sources import Source, by_folder, check_size, numbered
from scaledit.errors import UsageError

CLASSES = "classes.txt"
LABEL_KEYS = ("label", "cls", "class")
END = bytes(512)
LARGEST_LABEL = 1 << 20
"""Bytes of a .cls or .json."""


class Key(NamedTuple):
    """WebDataset's: the files of one sample share it."""

    shard: int
    name: str


class Place(NamedTuple):
    """Bytes in a shard."""

    shard: int
    offset: int
    size: int


def open_shards(path: Path, shards: list[Path]) -> Source:
    """Raises UsageError naming a shard that is damaged, or an image without a label."""
    files = [shard.open("rb") for shard in shards]

    def bytes_at(place: Place) -> bytes:
        data = os.pread(files[place.shard].fileno(), place.size, place.offset)
        if len(data) != place.size:
            raise BadImage(f"{shards[place.shard]} is cut short")
        return data

    images: list[tuple[str, Key, Place]] = []
    labels: dict[Key, int | str] = {}
    for k, shard in enumerate(shards):
        for name, place in _members(k, shard):
            key, suffix = _split(k, name)
            if suffix in SUFFIXES:
                images.append((name, key, place))
            elif suffix in (".cls", ".json"):
                if place.size > LARGEST_LABEL:
                    raise UsageError(f"{shard}: {name} has {place.size} bytes; that is no label")
                labels[key] = _label(bytes_at(place), suffix, f"{shard}: {name}")
    if not labels:
        images.sort()
        names, found, classes = by_folder([name for name, _, _ in images], path)
    else:
        unlabelled = [name for name, key, _ in images if key not in labels]
        if unlabelled:
            raise UsageError(f"{path}: {unlabelled[0]} has no label (a .cls or .json of the same name)")
        given = [labels[key] for _, key, _ in images]
        if len({type(label) for label in given}) > 1:
            raise UsageError(f"{path}: some labels are numbers, some are words")
        folder = path if path.is_dir() else path.parent
        found, classes = numbered(given, _class_names(folder / CLASSES), path)  # pyright: ignore[reportArgumentType]
        names = [f"{shards[key.shard].name}/{name}" for name, key, _ in images]

    def read(i: int) -> bytes:
        place = images[i][2]
        check_size(place.size, names[i])
        return bytes_at(place)

    return Source(path, "tar shards", classes, names, found, read)


def _members(k: int, shard: Path) -> list[tuple[str, Place]]:
    """Every file of a shard, by its headers alone."""
    found = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                hidden = any(part.startswith(".") for part in PurePosixPath(member.name).parts)
                if member.isfile() and not hidden:
                    found.append((member.name, Place(k, member.offset_data, member.size)))
    except (tarfile.TarError, EOFError) as error:
        raise UsageError(f"{shard} is no tar archive, or is damaged ({error})") from None
    with shard.open("rb") as file:
        file.seek(max(0, shard.stat().st_size - len(END)))
        if file.read() != END:
            raise UsageError(f"{shard} is cut short: a tar archive ends in zeros")
    return found


def _split(shard: int, name: str) -> tuple[Key, str]:
    """The key (a name up to its first dot), and the last suffix."""
    path = PurePosixPath(name)
    return Key(shard, str(path.with_name(path.name.split(".")[0]))), path.suffix.lower()


def _label(data: bytes, suffix: str, where: str) -> int | str:
    try:
        if suffix == ".cls":
            return int(data)
        value = json.loads(data)
        label = next(value[key] for key in LABEL_KEYS if key in value)
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(label)
        return label
    except (ValueError, TypeError, StopIteration):
        wanted = "a whole number" if suffix == ".cls" else f"a JSON object with {' or '.join(LABEL_KEYS)}"
        raise UsageError(f"{where} is not {wanted}") from None


def _class_names(path: Path) -> dict[int, str] | None:
    if not path.is_file():
        return None
    return dict(
        enumerate(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    )
