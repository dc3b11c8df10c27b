"""Files of a data set that are not used, grouped by reason.

hidden: 2 (.DS_Store, a/.thumb.png)          archives: 1 (backup.tar)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scaledit.data.decode import SUFFIXES
from scaledit.data.names import hidden, suffix_of

EXAMPLES = 20
"""Names recorded per reason."""
SHOWN = 3
"""Names listed in a message."""
TABLES = (".parquet", ".arrow")
PACKED = (".7z", ".bz2", ".gz", ".lz4", ".rar", ".tbz2", ".tgz", ".txz", ".tzst", ".xz", ".zst")
"""Archives that are compressed as a whole, so that no image in them can be read alone."""
ARCHIVES = (".tar", ".zip", *PACKED)
TEXTS = (".csv", ".htm", ".html", ".json", ".jsonl", ".md", ".rst", ".tsv", ".txt", ".xml", ".yaml", ".yml")
PICTURES = (".arw", ".cr2", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".nef")
PICTURES += (".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga")
"""Suffixes of images in unsupported formats."""
HIDDEN, ARCHIVE, TABLE, TEXT = "hidden", "archives", "tables", "text files"
IMAGE = "images beside the shards or tables"
PICTURE, OTHER = "pictures in formats that are not read", "files of other kinds"
NOT_PLAIN, TWICE = "neither files nor folders", "earlier files of the same name"


@dataclass(frozen=True)
class Unused:
    """count: number of files. examples: the names of the first EXAMPLES of them."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reason}: {self.count} ({first(self.examples)})"


class LeftOut:
    """Collects the files that are not used while a set is opened."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, *names: str) -> None:
        examples = self._names.setdefault(reason, [])
        self._counts[reason] = self._counts.get(reason, 0) + len(names)
        examples.extend(names[: EXAMPLES - len(examples)])

    def by_kind(self, names: Iterable[str]) -> None:
        """Adds files that are not images, each with its own reason."""
        for name in names:
            self.add(kind_of(name), name)

    def unused(self) -> tuple[Unused, ...]:
        return tuple(
            Unused(reason, self._counts[reason], tuple(names))
            for reason, names in self._names.items()
            if self._counts[reason]
        )


def first(names: Sequence[str]) -> str:
    """The first SHOWN names: "a, b, c, ..."."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def kind_of(name: str) -> str:
    """The reason why a file that no reader wants is not used."""
    if hidden(name.split("/")):
        return HIDDEN
    kinds = ((IMAGE, SUFFIXES), (ARCHIVE, ARCHIVES), (TABLE, TABLES), (TEXT, TEXTS), (PICTURE, PICTURES))
    return next((kind for kind, suffixes in kinds if suffix_of(name) in suffixes), OTHER)
