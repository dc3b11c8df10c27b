"""The features of a part of the images of a map, kept until their metrics are computed.

RUN/sweep/UNIT-*.npz:      "K/V/NAME"  the output NAME of extractor V for batch K
                           "about"     of each batch: its settings, its rows, the size of its images (JSON)

A file that cannot be read counts as none: its images are sampled again.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaledit.evaluation.features import Computed
from scaledit.files.atomic import atomic_bytes

CACHE = "sweep"
"""The folder of a run for the results of single cells and seeds, and for unfinished ones."""


class Part(NamedTuple):
    """Images that several settings share. members: the numbers of these. rows: the first and one after the
    last image, within the part. computed: None if the images are not finite."""

    members: tuple[int, ...]
    rows: tuple[int, int]
    computed: Computed | None


def path(run: Path, unit: str, rows: range) -> Path:
    """The file of the images `rows` of a unit, a hash of all that their features depend on."""
    return run / CACHE / f"{unit[:32]}-{rows.start}-{rows.stop}.npz"


def write(file: Path, parts: list[Part]) -> None:
    """Writes a file atomically."""
    arrays: dict[str, np.ndarray] = {}
    about = []
    for k, part in enumerate(parts):
        computed = part.computed
        images = None if computed is None else [*computed.size, computed.brightest]
        about.append([list(part.members), list(part.rows), images])
        for v, outputs in enumerate(() if computed is None else computed.outputs):
            arrays |= {f"{k}/{v}/{name}": value for name, value in outputs.items()}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)  # pyright: ignore[reportArgumentType]
    file.parent.mkdir(exist_ok=True)
    atomic_bytes(file, buffer.getvalue())


def read(file: Path) -> list[Part] | None:
    """What `write` wrote; None if there is no such file, or one that cannot be read."""
    if not file.exists():
        return None
    parts = []
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = [name for name in archive.files if name != "about"]
            for k, (members, rows, images) in enumerate(json.loads(str(archive["about"]))):
                own = [name.split("/", 2) for name in names if name.startswith(f"{k}/")]
                views = range(1 + max((int(v) for _, v, _ in own), default=-1))
                outputs = [
                    {name: archive[f"{k}/{v}/{name}"] for _, view, name in own if int(view) == v}
                    for v in views
                ]
                computed = None if images is None else Computed((images[0], images[1]), images[2], outputs)
                parts.append(Part(tuple(members), (rows[0], rows[1]), computed))
    except Exception:  # zipfile and numpy raise many types for damaged bytes
        return None
    return parts
