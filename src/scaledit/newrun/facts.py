"""What a set of images is, as far as the rules need to know.

folder, tar, zip, Parquet --look_at--> Facts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaledit.callbacks import Progress
from scaledit.data import inspection
from scaledit.data.decode import Header
from scaledit.data.sources import open_source
from scaledit.errors import RunError, UsageError, and_more, counted

MOST_DECODED, MOST_LOOKED_AT = 5_000, 20_000
"""Up to MOST_DECODED images are decoded, every pixel; of larger sets the headers of MOST_LOOKED_AT images,
evenly spaced."""
NAMED = 5
"""Unusable images that an error names."""


@dataclass(frozen=True)
class Facts:
    """path: of the set. kind: how it is stored. classes: (name, number of images) each. sides: the shorter
    side of each image that was looked at, in pixels, ascending. decoded: every pixel of every image was.
    remarks: what a user should know about how the set is read. headers: of the images looked at. split,
    image_key: as passed to `open_source`."""

    path: Path
    kind: str
    classes: tuple[tuple[str, int], ...]
    sides: tuple[int, ...]
    decoded: bool = True
    remarks: tuple[str, ...] = ()
    headers: tuple[Header, ...] = ()
    split: str = ""
    image_key: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def images(self) -> int:
        return sum(count for _, count in self.classes)

    @property
    def smallest_class(self) -> int:
        return min(count for _, count in self.classes)

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return self.sides[len(self.sides) // 2]

    def changes(self, image_size: int) -> list[str]:
        """How unusual images are treated at that size, a line for each kind."""
        return inspection.changes(self.headers, image_size)

    def in_words(self) -> str:
        """96 images in 4 classes (24 each) of 91 to 300 pixels (shorter side, median 176)"""
        counts = [count for _, count in self.classes]
        low, high = min(counts), max(counts)
        each = f" ({low:,} each)" if low == high else f" ({low:,} to {high:,} each)"
        number = len(self.classes)
        classes = f"in {number:,} classes{each}" if number > 1 else "in one class"
        sides = (
            f"{self.sides[0]:,} pixels"
            if self.sides[0] == self.sides[-1]
            else f"{self.sides[0]:,} to {self.sides[-1]:,} pixels (median {self.side:,})"
        )
        looked = "" if self.decoded else f"; looked at {len(self.sides):,} of them"
        return f"{counted(self.images, 'image')} {classes}, shorter sides of {sides}{looked}"


def look_at(
    path: Path, split: str = "", image_key: str = "", workers: int = 2, progress: Progress | None = None
) -> Facts:
    """The facts about the images at `path`. split, image_key: see `open_source`. workers: threads.

    Raises UsageError if there are none or `path` is something else, RunError if some of them cannot be used,
    which would end training."""
    _check_kind(path)
    source = open_source(path, split, image_key)
    decoded = len(source) <= MOST_DECODED
    indices = range(len(source)) if decoded else _spaced(len(source), MOST_LOOKED_AT)
    looked = inspection.look(source, indices, not decoded, workers, progress)
    if looked.refused:
        _refuse(path, looked.refused)
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    return Facts(
        source.path,
        source.kind,
        tuple(zip(source.class_names, counts, strict=True)),
        tuple(sorted(min(image.width, image.height) for image in looked.headers)),
        decoded,
        source.remarks(),
        tuple(looked.headers),
        split,
        image_key,
    )


def _spaced(number: int, most: int) -> list[int]:
    """Up to `most` indices below `number`, evenly spaced."""
    most = min(number, most)
    return [i * number // most for i in range(most)]


def _refuse(path: Path, refused: Sequence[str]) -> None:
    first = "; ".join(refused[:NAMED]) + and_more(len(refused) - NAMED) * (len(refused) > NAMED)
    one = len(refused) == 1
    raise RunError(
        f"{counted(len(refused), 'image')} in {path} cannot be used: {first}; remove or repair "
        f"{'it' if one else 'them (scaledit data inspect lists all)'} and run this command again"
    )


def _check_kind(path: Path) -> None:
    """Raises UsageError for paths of scaledit's own that hold no images of the user."""
    if path.suffix == ".toml":
        raise UsageError(f"{path} is a recipe; train it with: scaledit train {path}")
    if not path.is_dir():
        return
    if (path / "config.json").is_file() and (path / "log.jsonl").is_file():
        raise UsageError(
            f"{path} is the folder of a run, not of images; to resume it or train it longer: scaledit train "
            f"{path}"
        )
    if (path / "index.json").is_file() and any(path.glob("*.safetensors")):
        raise UsageError(
            f"{path} holds encoded images; give the folder of the images that they were made from"
        )
