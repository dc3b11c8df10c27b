"""Inspects a set before training: counts, sizes, a contact sheet, and the files that would be refused.

images    every header and, unless headers_only, every pixel            latents   the hash of every file
built in  counts, classes and attribution
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from scaledit import part
from scaledit.callbacks import Progress
from scaledit.data.background import DEFAULT, NAMED, Color, background_color
from scaledit.data.datasets import DataSet
from scaledit.data.decode import EXTREME, BadImage, Header, crop, decode, header
from scaledit.data.held_out import as_bytes
from scaledit.data.latents import Index
from scaledit.data.sets import Images
from scaledit.data.sources import Source, open_source
from scaledit.data.unused import Unused
from scaledit.errors import UsageError, counted, printable
from scaledit.files.manifest import mismatch
from scaledit.values import hints

WHITE = NAMED["white"]
THUMBNAIL, A_ROW, ROWS, MARGIN = 64, 8, 40, 150
SHOWN = 20
"""Lines of a list in the terminal; --json lists everything."""


@dataclass(frozen=True)
class Inspection:
    """facts: for people, by title. classes: images per class. refused: files that training and encoding would
    refuse, with the reason. warnings: how they treat unusual images. sheet: a contact sheet, (H, W, 3) uint8.
    unused: files that are not part of the set."""

    facts: Mapping[str, Any]
    classes: Mapping[str, int]
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    sheet: np.ndarray | None = None
    unused: tuple[Unused, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "classes": dict(self.classes),
            "refused": list(self.refused),
            "warnings": list(self.warnings),
            "unused": [asdict(unused) for unused in self.unused],
        }

    def lines(self) -> list[str]:
        count = len(self.classes)
        classes = [f"{name}  {images}" for name, images in self.classes.items()]
        return [
            *(f"{key:<14}{value}" for key, value in self.facts.items()),
            *_listed(counted(count, "class", "classes"), classes),
            *_listed("not used", list(map(str, self.unused))),
            *(f"warning: {warning}" for warning in self.warnings),
            *(_listed(f"{len(self.refused)} refused", self.refused) or ["nothing would be refused"]),
        ]


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    rest = [f"  ... and {len(lines) - SHOWN} more (--json lists all)"] if len(lines) > SHOWN else []
    return [f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *rest]


def images(
    path: Path,
    image_size: int | None,
    headers_only: bool,
    workers: int,
    progress: Progress | None = None,
    *,
    background: str = DEFAULT,
    split: str = "",
    image_key: str = "",
) -> Inspection:
    """Inspects the images at `path`. image_size: side of the training images, None for `usual_side`; smaller
    images cause a warning.
    headers_only: do not decode pixels. workers: threads. background: one of background.BACKGROUNDS. split,
    image_key: see `open_source`. Raises UsageError if there are no images."""
    color = background_color(background)
    source = open_source(path, split, image_key)
    headers, refused = look(source, range(len(source)), headers_only, workers, progress, color)
    side = image_size or usual_side(headers)
    chosen = f"{side}" if image_size else f"{side}, which 9 in 10 images reach; --image-size sets another"
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    return Inspection(
        facts={
            "path": str(path),
            "kind": source.kind,
            **({"split": source.split} if source.split else {}),
            "images": len(source),
            "looked at": "headers" if headers_only else "every pixel",
            "formats": _counted(image.format for image in headers),
            "modes": _counted(image.mode for image in headers),
            "bits": _counted(image.bits for image in headers),
            **_sizes(headers),
            **({"image size": chosen} if headers else {}),
        },
        classes=dict(zip(source.class_names, counts, strict=True)),
        refused=tuple(refused),
        warnings=(*source.notes, *changes(headers, side, background)),
        sheet=_sheet(source, color),
        unused=source.unused,
    )


SIDES = (32, 64, 128, 256, 512)
"""Sizes at which models are usually trained."""
REACHED = 0.9
"""The share of the images that should not have to be enlarged."""


def usual_side(headers: Sequence[Header]) -> int:
    """The largest of SIDES that REACHED of the images have; the side that these have if that is smaller."""
    if not headers:
        return SIDES[-2]
    shorter = sorted(min(image.width, image.height) for image in headers)
    reached = shorter[len(shorter) - math.ceil(REACHED * len(shorter))]
    return max((side for side in SIDES if side <= reached), default=reached)


class Looked(NamedTuple):
    """headers: of the images that can be used. refused: the others, each with its name and the reason."""

    headers: list[Header]
    refused: list[str]


def look(
    source: Source,
    indices: Sequence[int],
    headers_only: bool,
    workers: int,
    progress: Progress | None = None,
    color: Color | None = WHITE,
) -> Looked:
    """Looks at the images of `source` at `indices`. workers: threads. color: behind transparent images."""
    looked = Looked([], [])
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda i: _look(source, i, headers_only, color), indices)
        for done, result in enumerate(results, 1):
            if isinstance(result, Header):
                looked.headers.append(result)
            else:
                looked.refused.append(str(result))
            if progress is not None:
                progress(done, len(indices))
    return looked


def changes(headers: Sequence[Header], image_size: int, background: str = DEFAULT) -> list[str]:
    """A line for each kind of image that is changed more than by scaling down and cropping."""
    dropped = background_color(background) is None
    alpha = "alpha is ignored" if dropped else f"composited on {background}"
    deep = [image for image in headers if image.bits > 8]
    gray = sum(image.mode.startswith("I") for image in deep)
    small = sum(min(image.width, image.height) < image_size for image in headers)
    turned, transparent, extreme, frames = (
        sum(getattr(image, flag) for image in headers) for flag in ("turned", "alpha", "extreme", "frames")
    )
    kinds = {
        f"are smaller than {image_size} pixels and would be enlarged": small,
        "are turned on the side by an EXIF tag, which is not followed": turned,
        f"with an alpha channel or a transparent color: {alpha} (--background, data.background)": transparent,
        "of gray with more than 8 bits: scaled to 8": gray,
        "of color with 16 bits per channel: the upper 8 are used": len(deep) - gray,
        f"more than {EXTREME} times as long as wide: only the middle is used": extreme,
        "of several frames or pages: the first is used": frames,
    }
    return [
        f"1 image {re.sub('^are', 'is', text)}" if count == 1 else f"{count} images {text}"
        for text, count in kinds.items()
        if count
    ]


def _look(source: Source, i: int, header_only: bool, background: Color | None) -> Header | BadImage:
    try:
        data = source.read(i)
        result = header(data, source.names[i])
        if not header_only:
            decode(data, source.names[i], background)
        return result
    except BadImage as error:
        return error
    except OSError as error:
        return BadImage(f"{source.names[i]} cannot be read: {error.strerror or error}")


def _counted(values: Any) -> str:
    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common())


def _sizes(headers: list[Header]) -> dict[str, str]:
    if not headers:
        return {}
    widths, heights = np.array([(image.width, image.height) for image in headers]).T
    return {
        side: f"{values.min()} to {values.max()}, median {int(np.median(values))}"
        for side, values in (("width", widths), ("height", heights))
    }


def _sheet(source: Source, background: Color | None) -> np.ndarray:
    """A row per class: its name and its first images."""

    def thumbnail(i: int) -> Image.Image | None:
        try:
            pixels = crop(decode(source.read(i), str(source.names[i]), background), THUMBNAIL)
        except (BadImage, OSError):
            return None  # listed as refused
        return Image.fromarray(pixels)

    return _rows(source.class_names, source.labels, thumbnail)


def _rows(
    names: Sequence[str], labels: np.ndarray, thumbnail: Callable[[int], Image.Image | None]
) -> np.ndarray:
    rows = min(len(names), ROWS)
    sheet = Image.new("RGB", (MARGIN + A_ROW * THUMBNAIL, rows * THUMBNAIL), "white")
    for row in range(rows):
        text = printable(names[row])[:22]
        ImageDraw.Draw(sheet).text((4, row * THUMBNAIL + THUMBNAIL // 2 - 6), text, fill="black")
        for column, i in enumerate(np.flatnonzero(labels == row)[:A_ROW].tolist()):
            if (image := thumbnail(i)) is not None:
                sheet.paste(image, (MARGIN + column * THUMBNAIL, row * THUMBNAIL))
    return np.asarray(sheet)


def built_in(name: str, image_size: int | None = None) -> Inspection:
    """Inspects the built-in set `name`. image_size: side of the images, for a set that can be drawn at any.
    Raises UsageError if its package is missing, or if its images have one size and another one is given."""
    table: dict[str, Any] = {"name": name}
    if image_size is not None:
        if "image_size" not in hints(part.find(DataSet, name)):
            raise UsageError(f"the images of {name} have one size; leave --image-size out")
        table["image_size"] = image_size
    data_set = part.build(DataSet, table, "data")
    training, held_out = data_set.open(), data_set.held_out()
    assert isinstance(training, Images) and isinstance(held_out, Images)  # like all built-in sets
    _, height, width = training.shape
    counts = torch.bincount(training.labels, minlength=len(training.class_names)).tolist()
    return Inspection(
        facts={
            "set": name,
            "kind": "built in",
            "images": len(training),
            "held out": f"{len(held_out)}, not counted here",
            "image size": f"{width}x{height}",
            **({"attribution": data_set.attribution} if data_set.attribution else {}),
        },
        classes=dict(zip(training.class_names, counts, strict=True)),
        refused=(),
        warnings=(),
        sheet=_sheet_of(training),
    )


def _sheet_of(images: Images) -> np.ndarray:
    """As `_sheet`, of images in memory."""

    def thumbnail(i: int) -> Image.Image:
        pixels = as_bytes(images.images[i].expand(3, -1, -1))
        return Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)

    return _rows(images.class_names, images.labels.numpy(), thumbnail)


def latents(folder: Path, progress: Progress | None = None) -> Inspection:
    """Inspects the size and SHA-256 of every file of a cache. Raises RunError if its index is corrupt."""
    index = Index.read(folder)
    refused = []
    for done, shard in enumerate(index.shards, 1):
        if wrong := mismatch(folder / shard.file, shard.size, shard.sha256):
            refused.append(f"{folder / shard.file} {wrong}")
        if progress is not None:
            progress(done, len(index.shards))
    info = index.autoencoder
    rounded = ", ".join(f"{mean:.3f} ({std:.3f})" for mean, std in zip(index.mean, index.std, strict=True))
    return Inspection(
        facts={
            "path": str(folder),
            "kind": f"latents, {index.dtype}{', mirrored too' if index.flip else ''}",
            "images": sum(shard.images for shard in index.shards),
            "files": f"{len(index.shards)}, {sum(shard.size for shard in index.shards) / 1e6:.1f} MB",
            "image size": f"{index.image_size[1]}x{index.image_size[0]}",
            "moments": "x".join(map(str, index.shape)),
            "autoencoder": f"{info.name}, SHA-256 {info.sha256[:16]}, scale {info.scale:.5f}",
            "mean (sd)": rounded,
            "left out": len(index.skipped),
        },
        classes=dict(zip(index.class_names, index.counts, strict=True)),
        refused=tuple(refused),
        warnings=tuple(f"left out: {name}" for name in index.skipped),
    )
