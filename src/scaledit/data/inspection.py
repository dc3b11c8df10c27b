"""What a set holds, before anybody trains on it: counts, sizes, a contact sheet, and what would be refused.

images   every header (and, unless only those are asked for, every pixel)    latents   every byte's hash
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from scaledit.callbacks import Progress
from scaledit.data.background import DEFAULT, Color, background_color
from scaledit.data.decode import EXTREME, BadImage, Header, crop, decode, header
from scaledit.data.latents import Index, ShardFile
from scaledit.data.sources import Source, open_source
from scaledit.data.unused import Unused
from scaledit.errors import printable
from scaledit.files.manifest import mismatch

THUMBNAIL, A_ROW, ROWS, MARGIN = 64, 8, 40, 150
SHOWN = 20
"""Lines of a list in the terminal; --json has all."""


@dataclass(frozen=True)
class Inspection:
    """facts: what is there, in words. refused: what training or encoding would not take, and why. warnings:
    what they take and people may not expect. unused: files that lie there and are left out."""

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
            "unused": [asdict(one) for one in self.unused],
        }

    def lines(self) -> list[str]:
        shown = [f"{key:<14}{value}" for key, value in self.facts.items()]
        shown += _listed(
            "1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes",
            [f"{name}  {count}" for name, count in self.classes.items()],
        )
        shown += _listed("not used", [str(one) for one in self.unused])
        shown += [f"warning: {warning}" for warning in self.warnings]
        return shown + (_listed(f"{len(self.refused)} refused", self.refused) or ["nothing would be refused"])


def _listed(title: str, lines: list[str] | tuple[str, ...]) -> list[str]:
    if not lines:
        return []
    rest = [f"  ... and {len(lines) - SHOWN} more (--json lists all)"] if len(lines) > SHOWN else []
    return [f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *rest]


def images(
    path: Path,
    image_size: int,
    headers_only: bool,
    workers: int,
    progress: Progress | None = None,
    *,
    background: str = DEFAULT,
    split: str = "",
    image_key: str = "",
) -> Inspection:
    """Of a Source. image_size: that the images are wanted at; smaller ones are warned of. background: a word
    of background.BACKGROUNDS. split, image_key: of `open_source`. Raises UsageError where there is no
    Source."""
    color = background_color(background)
    source = open_source(path, split, image_key)
    headers: list[Header] = []
    refused: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for done, seen in enumerate(
            pool.map(lambda i: _look(source, i, headers_only, color), range(len(source)))
        ):
            if isinstance(seen, Header):
                headers.append(seen)
            else:
                refused.append(str(seen))
            if progress is not None:
                progress(done + 1, len(source))
    small = sum(min(one.width, one.height) < image_size for one in headers)
    turned = sum(one.turned for one in headers)
    warnings = list(source.notes)
    if small:
        warnings.append(f"{_images(small)} smaller than {image_size} pixels and would be enlarged")
    if turned:
        warnings.append(f"{_images(turned)} turned on the side by an EXIF tag, which is not followed")
    warnings += _converted(headers, background)
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    return Inspection(
        facts={
            "path": str(path),
            "kind": source.kind,
            **({"split": source.split} if source.split else {}),
            "images": len(source),
            "looked at": "headers" if headers_only else "every pixel",
            "formats": _counted(one.format for one in headers),
            "modes": _counted(one.mode for one in headers),
            "bits": _counted(one.bits for one in headers),
            **_sizes(headers),
        },
        classes=dict(zip(source.class_names, counts, strict=True)),
        refused=tuple(refused),
        warnings=tuple(warnings),
        sheet=_sheet(source, color),
        unused=source.unused,
    )


def _images(count: int) -> str:
    return f"{count} image is" if count == 1 else f"{count} images are"


def _converted(headers: list[Header], background: str) -> list[str]:
    """What is done to images that are no plain ones of 8 bits, kind by kind."""
    ignored = background_color(background) is None
    shown = "their alpha is ignored" if ignored else f"they are composited on {background}"
    deep = [one for one in headers if one.bits > 8]
    grey = [one for one in deep if one.mode.startswith("I")]
    kinds = (
        (
            [one for one in headers if one.alpha],
            f"with an alpha channel or a transparent color: {shown} (--background, data.background)",
        ),
        (grey, "of grey with more than 8 bits: scaled to 8"),
        ([one for one in deep if one not in grey], "of color with 16 bits per channel: the upper 8 are used"),
        (
            [one for one in headers if one.extreme],
            f"more than {EXTREME} times as long as wide: only the middle is used",
        ),
        ([one for one in headers if one.frames], "of several frames or pages: the first is used"),
    )
    return [f"{len(some)} image{'' if len(some) == 1 else 's'} {what}" for some, what in kinds if some]


def _look(source: Source, i: int, header_only: bool, background: Color | None) -> Header | BadImage:
    try:
        data = source.read(i)
        found = header(data, source.names[i])
        if not header_only:
            decode(data, source.names[i], background)
        return found
    except BadImage as error:
        return error
    except OSError as error:
        return BadImage(f"{source.names[i]} cannot be read: {error.strerror or error}")


def _counted(values: Any) -> str:
    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common())


def _sizes(headers: list[Header]) -> dict[str, str]:
    if not headers:
        return {}
    widths, heights = np.array([(one.width, one.height) for one in headers]).T
    return {
        side: f"{values.min()} to {values.max()}, median {int(np.median(values))}"
        for side, values in (("width", widths), ("height", heights))
    }


def _sheet(source: Source, background: Color | None) -> np.ndarray:
    """The first images of each class in a row, the class's name before them."""
    rows = min(len(source.class_names), ROWS)
    sheet = Image.new("RGB", (MARGIN + A_ROW * THUMBNAIL, rows * THUMBNAIL), "white")
    for row in range(rows):
        text = printable(source.class_names[row])[:22]
        ImageDraw.Draw(sheet).text((4, row * THUMBNAIL + THUMBNAIL // 2 - 6), text, fill="black")
        for column, i in enumerate(np.flatnonzero(source.labels == row)[:A_ROW].tolist()):
            try:
                pixels = crop(decode(source.read(i), str(source.names[i]), background), THUMBNAIL)
            except (BadImage, OSError):
                continue  # it is in the list of what is refused
            sheet.paste(Image.fromarray(pixels), (MARGIN + column * THUMBNAIL, row * THUMBNAIL))
    return np.asarray(sheet)


def latents(folder: Path, progress: Progress | None = None) -> Inspection:
    """Of a cache: every file's size and SHA-256. Raises RunError where its index is corrupt."""
    index = Index.read(folder)
    refused = []
    for done, shard in enumerate(index.shards):
        wrong = _wrong(folder, shard)
        if wrong:
            refused.append(wrong)
        if progress is not None:
            progress(done + 1, len(index.shards))
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


def _wrong(folder: Path, shard: ShardFile) -> str:
    path = folder / shard.file
    wrong = mismatch(path, shard.size, shard.sha256)
    return wrong and f"{path} {wrong}"
