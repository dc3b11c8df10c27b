"""Decides which of the files in a folder are the data set.

    1  images in class folders             the classes; archives and tables among them are left out
    2  no class folders, one kind of       .tar shards, .parquet or .arrow tables: those
    3  images in no folder, nothing else   one class

If two of these fit (class folders and a numbered series of shards; single images and a table), the folder is
refused with the names of both. A series is numbered: "-00000-of-00002", or 0000, 0001, ...
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from scaledit.data.decode import SUFFIXES
from scaledit.data.names import hidden, parts_of, suffix_of
from scaledit.data.splits import SHARD
from scaledit.data.unused import HIDDEN, NOT_PLAIN, SHOWN, TABLES, LeftOut
from scaledit.errors import UsageError, shown
from scaledit.files.reading import read_json

TARS = (".tar",)
CLASSES = "classes.txt"
"""Beside shards: the classes' names, one per line."""
STATE = "state.json"
"""Beside tables that `datasets` saved: their names."""
MOST_PATHS = 16
"""Paths by which symbolic links may lead to one folder. Two links at each level double the paths, so a few
dozen links could keep `walk` busy forever."""
CYCLE, NOT_NAMED = "links back to a folder around them", f"tables that their {STATE} does not name"


class Listing(NamedTuple):
    """files, folders: paths relative to the folder, with "/", without hidden ones."""

    files: list[str]
    folders: list[str]


class Layout(NamedTuple):
    """kind: "tree", or the suffix of the shards or tables in `files`. excluded: files that are already
    recorded as left out."""

    kind: str
    files: list[str]
    excluded: Sequence[str] = ()


def walk(folder: Path, left: LeftOut) -> Listing:
    """Lists everything below a folder. Symbolic links are followed, unless they lead back to a folder around
    them. Raises UsageError if a link that may be a class is broken, or if links lead to one folder by more
    than MOST_PATHS paths."""
    files: list[str] = []
    folders: list[str] = []
    root = os.stat(folder)
    pending = [(str(folder), "", frozenset({(root.st_dev, root.st_ino)}))]
    paths: Counter[tuple[int, int]] = Counter()
    while pending:
        current, prefix, around = pending.pop()
        with os.scandir(current) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            name = prefix + entry.name
            if hidden((entry.name,)):
                left.add(HIDDEN, name)
            elif entry.is_symlink() and (error := _broken(entry.path)):
                if error == errno.ELOOP:
                    left.add(CYCLE, name)
                elif suffix_of(name):
                    files.append(name)  # an image is refused by its name when it is read
                else:
                    raise UsageError(
                        f"{folder / name} is a link to {os.readlink(entry.path)}, which does not exist; "
                        "restore the folder if it is a class, or remove the link"
                    )
            elif entry.is_dir():
                status = entry.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in around:
                    left.add(CYCLE, name)
                    continue
                paths[identity] += 1
                if paths[identity] > MOST_PATHS:
                    raise UsageError(
                        f"{folder} has symbolic links that lead to {os.path.realpath(entry.path)} by more "
                        f"than {MOST_PATHS} paths, such as {shown(name)}; remove the links that repeat it"
                    )
                folders.append(name)
                pending.append((entry.path, f"{name}/", around | {identity}))
            elif entry.is_file():
                files.append(name)
            else:
                left.add(NOT_PLAIN, name)
    return Listing(sorted(files), sorted(folders))


def _broken(path: str) -> int:
    """The system's error for a link that leads nowhere or to itself; 0 for other links."""
    try:
        os.stat(path)
        return 0
    except OSError as error:
        return error.errno or errno.ENOENT


def decide(folder: Path, files: Sequence[str], left: LeftOut) -> Layout:
    """The layout of a folder with these files, by the rules above. Raises UsageError if two layouts fit."""
    images = [name for name in files if suffix_of(name) in SUFFIXES]
    sets = {kind: [name for name in files if suffix_of(name) == kind] for kind in (*TARS, *TABLES)}
    sets[".arrow"], unnamed = _named(folder, sets[".arrow"])
    sets = {kind: names for kind, names in sets.items() if names}
    series = [kind for kind, names in sets.items() if is_series(names)]
    in_folders = [name for name in images if "/" in name]
    if in_folders and series:
        raise _ambiguous(folder, f"images in class folders {_some(in_folders)}", series[0], sets)
    kinds = series if len(series) == 1 else list(sets)
    if in_folders or not kinds:
        return Layout("tree", images)
    if images and len(series) != 1:
        raise _ambiguous(folder, f"images in no class folder {_some(images)}", kinds[0], sets)
    if len(kinds) > 1:
        raise _ambiguous(folder, f"{kinds[0]} files {_some(sets[kinds[0]])}", kinds[1], sets)
    excluded = unnamed if kinds == [".arrow"] else []
    left.add(NOT_NAMED, *excluded)
    return Layout(kinds[0], sets[kinds[0]], excluded)


def is_series(files: Sequence[str]) -> bool:
    """Whether shards or tables are numbered as the parts of one set: as one of n, or without a gap from a
    zero-padded 0 or 1."""
    numbers: dict[tuple[str, ...], list[str]] = {}
    for name in files:
        base = parts_of(name)[-1]
        stem = base.rpartition(".")[0]
        if SHARD.match(stem):
            return True
        if match := re.fullmatch(r"(.*?)([0-9]{1,18})([^0-9]*)", stem):
            numbers.setdefault((name.removesuffix(base), match[1], match[3]), []).append(match[2])
    return any(
        len(some) > 1
        and min(some).startswith("0")
        and sorted(map(int, some)) in ([*range(len(some))], [*range(1, len(some) + 1)])
        for some in numbers.values()
    )


def _named(folder: Path, tables: Sequence[str]) -> tuple[list[str], list[str]]:
    """(tables that the state.json beside them names or that have none beside them, other tables: caches)."""

    @cache
    def data_files(parent: str) -> set[str] | None:
        state = folder / parent / STATE
        if not state.is_file():
            return None
        entries = read_json(state, "the state of a saved dataset", error=UsageError).get("_data_files")
        if not isinstance(entries, list):
            return None
        return {str(entry.get("filename")) for entry in entries if isinstance(entry, dict)}

    named, others = [], []
    for name in tables:
        parent, _, base = name.rpartition("/")
        listed = data_files(parent)
        (named if listed is None or base in listed else others).append(name)
    return named, others


def _some(names: Sequence[str]) -> str:
    return f"({', '.join(names[:SHOWN])}{f', ... {len(names)} in all' if len(names) > SHOWN else ''})"


def _ambiguous(folder: Path, one: str, kind: str, sets: dict[str, list[str]]) -> UsageError:
    return UsageError(
        f"{folder} contains {one} and {kind} files {_some(sets[kind])}, and each of them could be the data "
        "set; move one of them elsewhere, or give the path of the one that you mean"
    )
