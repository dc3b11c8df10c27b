"""What lies in a set and is not used: by reason, with a count and the first names.

hidden: 2 (.DS_Store, a/.thumb.png)          archives: 1 (backup.tar)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scaledit.data.decode import SUFFIXES
from scaledit.data.names import hidden, suffix_of

EXAMPLES = 20
"""Names kept for a reason."""
SHOWN = 3
TABLES = (".parquet", ".arrow")
ARCHIVES = (
    ".7z",
    ".bz2",
    ".gz",
    ".lz4",
    ".rar",
    ".tar",
    ".tbz2",
    ".tgz",
    ".txz",
    ".tzst",
    ".xz",
    ".zip",
    ".zst",
)
TEXTS = (".csv", ".htm", ".html", ".json", ".jsonl", ".md", ".rst", ".tsv", ".txt", ".xml", ".yaml", ".yml")
PICTURES = (".arw", ".cr2", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".nef")
PICTURES += (".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga")
"""Pictures that are not read."""
HIDDEN, ARCHIVE, TABLE, TEXT = "hidden", "archives", "tables", "text files"
IMAGE = "images beside the shards or tables"
PICTURE, OTHER = "pictures in formats that are not read", "files of other kinds"


@dataclass(frozen=True)
class Unused:
    """count: how many. examples: the first EXAMPLES of their names."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > SHOWN else ""
        return f"{self.reason}: {self.count} ({', '.join(self.examples[:SHOWN])}{more})"


class LeftOut:
    """Collects what is not used while a set is opened."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, *names: str) -> None:
        kept = self._names.setdefault(reason, [])
        self._counts[reason] = self._counts.get(reason, 0) + len(names)
        kept.extend(names[: EXAMPLES - len(kept)])

    def by_kind(self, names: Iterable[str]) -> None:
        """Files that are no images, each for its own reason."""
        for name in names:
            self.add(kind_of(name), name)

    def found(self) -> tuple[Unused, ...]:
        return tuple(
            Unused(reason, self._counts[reason], tuple(names))
            for reason, names in self._names.items()
            if self._counts[reason]
        )


def kind_of(name: str) -> str:
    """Why a file is not used, where it is none of the files that are read."""
    if hidden(name.split("/")):
        return HIDDEN
    suffix = suffix_of(name)
    if suffix in SUFFIXES:
        return IMAGE
    for kind, suffixes in ((ARCHIVE, ARCHIVES), (TABLE, TABLES), (TEXT, TEXTS), (PICTURE, PICTURES)):
        if suffix in suffixes:
            return kind
    return OTHER
