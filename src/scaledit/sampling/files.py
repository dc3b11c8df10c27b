"""Samples on disk: a grid, ADM's batch, or a folder with one PNG per image. All files are written atomically.

FILE.npz   arr_0 (N, H, W, 3) uint8   arr_1 (N,) int64 labels   origin: JSON, how to reproduce them
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import captions, images
from scaledit.files.atomic import atomic_write
from scaledit.sampling.request import Samples


def write(samples: Samples, out: Path) -> None:
    """Writes a grid (.png), ADM's batch (.npz) or a folder of PNGs (no suffix)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        drawn = grid(samples)
        images.save_png(out, drawn.image, {**samples.origin, captions.BOX: drawn.box})
    elif out.suffix == ".npz":
        write_npz(out, [samples.images], samples.labels, samples.origin, len(samples.images))
    else:
        for i, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
            index = samples.origin["start"] + i
            origin = {**samples.origin, "index": index, "class": int(label)}
            images.save_png(out / f"{index:06d}-{label}.png", image, origin)


def grid(samples: Samples) -> captions.Sheet:
    """The images in rows, with the names of their classes: beside the rows if each row is a class, else below
    the images. A row beside which nothing changes has none."""
    names, columns = list(samples.names), samples.columns
    if samples.origin["labels"] == "rows":
        return captions.rows(samples.images, columns, names[::columns])
    if len(set(names)) > 1:
        return captions.one_by_one(samples.images, columns, names)
    return captions.one_by_one(samples.images, columns, ())


def write_npz(
    out: Path, parts: Iterable[np.ndarray], labels: np.ndarray, origin: Mapping[str, Any], n: int
) -> None:
    """Writes ADM's batch of `n` images, given in parts (n_i, H, W, 3) uint8 of which one is in memory at a
    time. The same images give the same bytes."""
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        parts = iter(parts)
        first = next(parts)
        with _member(archive, "arr_0") as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, *first.shape[1:])}
            np.lib.format.write_array_header_1_0(member, header)
            for part in itertools.chain([first], parts):
                member.write(np.ascontiguousarray(part).data)
        _add(archive, {"arr_1": labels, "origin": np.array(json.dumps(origin))})


def write_arrays(out: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz of plain arrays; the same arrays give the same bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, arrays)


def _add(archive: zipfile.ZipFile, arrays: Mapping[str, np.ndarray]) -> None:
    for name, value in arrays.items():
        with _member(archive, name) as member:
            np.lib.format.write_array(member, value, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str):
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # dated 1980
