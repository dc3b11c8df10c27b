"""What lies in a folder of images, and which of it is the set.

    1  images in class folders             the classes; archives and tables among them are left out
    2  no class folders, one kind of       .tar shards, .parquet or .arrow tables: those
    3  images in no folder, nothing else   one class

Where two of these fit (class folders and a numbered series of shards; single images and a table), none is
guessed: the refusal names both. A series is numbered: "-00000-of-00002", or 0000, 0001, ...
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scaledit.data.decode import SUFFIXES
from scaledit.data.names import hidden, parts_of, suffix_of
from scaledit.data.splits import SHARD
from scaledit.data.unused import HIDDEN, SHOWN, TABLES, LeftOut
from scaledit.errors import UsageError, shown
from scaledit.files.reading import read_json

TARS = (".tar",)
CLASSES = "classes.txt"
"""Beside shards: the classes' names, one per line."""
STATE = "state.json"
"""What `datasets` writes beside the tables that it saved: their names."""
MOST_PATHS = 16
"""Paths by which symbolic links may lead to one folder. Links that fan out double the paths at every level, so
that a few dozen of them would be walked for ever."""
CYCLE, NOT_PLAIN, NOT_NAMED = (
    "links back to a folder around them",
    "neither files nor folders",
    f"tables that their {STATE} does not name",
)


class Listing(NamedTuple):
    """files, folders: paths relative to the folder, with "/", hidden ones left out."""

    files: list[str]
    folders: list[str]


class Layout(NamedTuple):
    """kind: "tree", or the suffix of the shards or tables in `files`. told: files already said to be left
    out."""

    kind: str
    files: list[str]
    told: frozenset[str] = frozenset()


def walk(folder: Path, left: LeftOut) -> Listing:
    """Lists everything below a folder. Symbolic links are followed, unless they lead back to a folder around
    them. Raises UsageError if a link that may be a class is broken, or if links lead to one folder by more than
    MOST_PATHS paths."""
    files: list[str] = []
    folders: list[str] = []
    begin = os.stat(folder)
    todo = [(str(folder), "", frozenset({(begin.st_dev, begin.st_ino)}))]
    paths: Counter[tuple[int, int]] = Counter()
    while todo:
        at, prefix, around = todo.pop()
        with os.scandir(at) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            name = prefix + entry.name
            if hidden((entry.name,)):
                left.add(HIDDEN, name)
                continue
            if entry.is_symlink() and (lost := _leads_nowhere(entry.path)):
                if lost == errno.ELOOP:
                    left.add(CYCLE, name)
                elif suffix_of(name):
                    files.append(name)  # an image is refused by its name where it is read
                else:
                    raise UsageError(
                        f"{folder / name} is a link to {os.readlink(entry.path)}, which is not there; if "
                        "that is a class, make it reachable; else remove the link"
                    )
            elif entry.is_dir():
                found = entry.stat()
                here = (found.st_dev, found.st_ino)
                if here in around:
                    left.add(CYCLE, name)
                else:
                    paths[here] += 1
                    if paths[here] > MOST_PATHS:
                        raise UsageError(
                            f"{folder} has symbolic links that lead to {os.path.realpath(entry.path)} by more "
                            f"than {MOST_PATHS} paths ({shown(name)} is one); remove the links that repeat it"
                        )
                    folders.append(name)
                    todo.append((entry.path, f"{name}/", around | {here}))
            elif entry.is_file():
                files.append(name)
            else:
                left.add(NOT_PLAIN, name)
    return Listing(sorted(files), sorted(folders))


def _leads_nowhere(path: str) -> int:
    """What the system says of a link to what is not there, or to itself; 0 for others."""
    try:
        os.stat(path)
        return 0
    except OSError as error:
        return error.errno or errno.ENOENT


def decide(folder: Path, listing: Listing, left: LeftOut) -> Layout:
    """By the rules above. Raises UsageError where two layouts fit."""
    images = [name for name in listing.files if suffix_of(name) in SUFFIXES]
    sets = {
        kind: files
        for kind in (*TARS, *TABLES)
        if (files := [name for name in listing.files if suffix_of(name) == kind])
    }
    told: list[str] = []
    if ".arrow" in sets:
        sets[".arrow"], told = _named(folder, sets[".arrow"])
    sets = {kind: files for kind, files in sets.items() if files}
    series = [kind for kind, files in sets.items() if is_series(files)]
    in_folders = [name for name in images if "/" in name]
    if in_folders and not series:
        return Layout("tree", images)
    if in_folders:
        kind = series[0]
        raise _two(folder, f"images in class folders {_some(in_folders)}", kind, sets[kind])
    kinds = series if len(series) == 1 else list(sets)
    if images and sets and len(series) != 1:
        raise _two(folder, f"images in no class folder {_some(images)}", kinds[0], sets[kinds[0]])
    if len(kinds) > 1:
        first, second = kinds[:2]
        raise _two(folder, f"{first} files {_some(sets[first])}", second, sets[second])
    if not kinds:
        return Layout("tree", images)
    if kinds == [".arrow"] and told:
        left.add(NOT_NAMED, *told)
        return Layout(".arrow", sets[".arrow"], frozenset(told))
    return Layout(kinds[0], sets[kinds[0]])


def is_series(files: Sequence[str]) -> bool:
    """Whether shards or tables are numbered as the parts of one set: one of n, or from a padded zero or one
    on without a gap."""
    numbers: dict[tuple[str, ...], list[str]] = {}
    for name in files:
        *_, base = parts_of(name)
        stem = base.rpartition(".")[0]
        if SHARD.match(stem):
            return True
        found = re.fullmatch(r"(.*?)([0-9]{1,18})([^0-9]*)", stem)
        if found:
            numbers.setdefault((name.removesuffix(base), found[1], found[3]), []).append(found[2])
    return any(
        len(some) > 1
        and min(some).startswith("0")
        and sorted(map(int, some)) in ([*range(len(some))], [*range(1, len(some) + 1)])
        for some in numbers.values()
    )


def _named(folder: Path, tables: list[str]) -> tuple[list[str], list[str]]:
    """(the tables that the state.json beside them names, those that it does not: caches). Where there is no
    state.json, all are of the first kind."""
    named: dict[str, set[str] | None] = {}
    for name in tables:
        inside = name.rpartition("/")[0]
        if inside not in named:
            state = folder / inside / STATE
            named[inside] = _data_files(state) if state.is_file() else None
    kept, others = [], []
    for name in tables:
        inside, _, base = name.rpartition("/")
        some = named[inside]
        (kept if some is None or base in some else others).append(name)
    return kept, others


def _data_files(state: Path) -> set[str] | None:
    listed = read_json(state, "what datasets says of its tables", error=UsageError).get("_data_files")
    if not isinstance(listed, list):
        return None
    return {str(one.get("filename")) for one in listed if isinstance(one, dict)}


def _some(names: Sequence[str]) -> str:
    return f"({', '.join(names[:SHOWN])}{f', ... {len(names)} in all' if len(names) > SHOWN else ''})"


def _two(folder: Path, one: str, kind: str, others: Sequence[str]) -> UsageError:
    return UsageError(
        f"{folder} holds {one} and {kind} files {_some(others)}, and either may be the set; move one of them "
        "elsewhere, or give the path of the one that is meant"
    )
