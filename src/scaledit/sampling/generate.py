"""Very many samples, by parts: stop and run it again, or divide it among processes with --shard i/n.

    part k holds the images [k P, (k+1) P), P = 250; shard i of n makes the parts k with k mod n = i

    OUT/request.json  OUT/part-00000.npz ...             a folder: stays as it is
    FILE.npz.parts/   the same; joined into FILE.npz by whoever finds all parts there, then removed

Each image is a function of its index, and each part is drawn on its own, so that neither shards nor
interruptions change a byte. Nothing is passed between processes but these files.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaledit import checks
from scaledit.callbacks import Progress
from scaledit.config import old
from scaledit.errors import RunError, UsageError
from scaledit.files.reading import read_json
from scaledit.files.shards import ALL, Shard, begin_or_join
from scaledit.pipeline import Pipeline
from scaledit.sampling import files
from scaledit.sampling.request import Request, labels_at

PART = 250
REQUEST = "request.json"


class Generated(NamedTuple):
    """images: how many of the whole are there now. complete: all of them, and `out` can be used."""

    out: Path
    images: int
    complete: bool


@dataclass(frozen=True)
class Parts:
    """A folder of parts and the request that they belong to (as written in request.json)."""

    folder: Path
    request: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Parts:
        """Raises UsageError if the folder's request.json cannot be read."""
        path, what = folder / REQUEST, "a request that scaledit generate wrote"
        try:
            request = read_json(path, what, error=UsageError)
        except OSError as error:
            raise UsageError(f"{path} cannot be read as {what}: {error.strerror or error}") from None
        if not all(type(request.get(key)) is int and request[key] > 0 for key in ("n", "part")):
            raise UsageError(f"{path} cannot be read as {what}: it has no number of images and size of parts")
        return cls(folder, old.protocol(request))

    @property
    def n(self) -> int:
        return self.request["n"]

    def path(self, k: int) -> Path:
        return self.folder / f"part-{k:05d}.npz"

    def numbers(self) -> range:
        return range(-(-self.n // self.request["part"]))

    def indices(self, k: int) -> range:
        size = self.request["part"]
        return range(k * size, min((k + 1) * size, self.n))

    def missing(self) -> list[int]:
        return [k for k in self.numbers() if not self.path(k).is_file()]

    def images(self) -> Iterator[np.ndarray]:
        """Part after part. Raises RunError naming one that is corrupt."""
        for k in self.numbers():
            try:
                with np.load(self.path(k), allow_pickle=False) as part:
                    images = part["arr_0"]
            except Exception as error:  # numpy and zipfile raise many kinds for corrupt files
                raise RunError(
                    f"{self.path(k)} is corrupt ({error}); delete it and run the command again"
                ) from None
            if len(images) != len(self.indices(k)):
                raise RunError(
                    f"{self.path(k)} holds {len(images)} images; delete it and run the command again"
                )
            yield images


def generate(
    pipeline: Pipeline,
    request: Request,
    out: Path,
    shard: Shard = ALL,
    batch_size: int = 125,
    progress: Progress | None = None,
) -> Generated:
    """Makes this shard's missing parts of `request` (which has a num), and joins them if `out` is a .npz.

    progress(done, total) counts this shard's images. Raises UsageError if `out` holds other samples, or where
    the disk has no room for them; RunError as drawing does.
    """
    assert request.num is not None and request.start == 0
    described = json.loads(json.dumps({**request.origin(pipeline), "part": PART}))
    joined = out.suffix == ".npz"
    if joined and out.exists():
        if _origin(out) != described:
            raise UsageError(f"{out} holds other samples; choose another --out, or delete it")
        return Generated(out, request.num, True)
    folder = out.with_name(f"{out.name}.parts") if joined else out
    batch_size = checks.integer(batch_size, "batch_size", 1)
    pipeline.check(request.settings)
    _check_room(pipeline, request.num, folder, joined)
    begin_or_join(folder, REQUEST, described, "generated samples", old.protocol)
    parts = Parts.read(folder)
    mine = [k for k in parts.numbers() if shard.has(k)]
    todo = [k for k in mine if not parts.path(k).is_file()]
    total = sum(len(parts.indices(k)) for k in mine)
    done = total - sum(len(parts.indices(k)) for k in todo)
    if progress is not None:
        progress(done, total)
    for k in todo:
        indices = parts.indices(k)
        labels = labels_at(request.rule, indices, request.classes, request.settings.seed)
        made = []
        for first in range(0, len(indices), batch_size):
            some = labels[first : first + batch_size].tolist()
            made.append(pipeline.sample(some, request.settings, indices.start + first, batch_size))
            done += len(some)
            if progress is not None:
                progress(done, total)
        files.write_npz(parts.path(k), made, labels, {**described, "start": indices.start}, len(indices))
    missing = parts.missing()
    if missing and not (joined and out.exists()):  # another shard may have joined and removed them
        return Generated(out, request.num - sum(len(parts.indices(k)) for k in missing), False)
    if joined and not out.exists():
        _join(parts, request, out)
    return Generated(out, request.num, True)


def _check_room(pipeline: Pipeline, n: int, folder: Path, joined: bool) -> None:
    """Raises UsageError where `n` images take more than the disk has free, what is there already counted;
    joined into one file they lie there twice until the parts are removed."""
    _, height, width = pipeline.config.model.shape
    finer = 1 if pipeline.decoder is None else pipeline.decoder.autoencoder_info.downsampling
    image = 3 * height * width * finer**2
    above = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    there = sum(path.stat().st_size for path in folder.glob("part-*.npz")) if above == folder else 0
    checks.fits(
        image * n * (2 if joined else 1),
        shutil.disk_usage(above).free + there,
        f"{n:,} images of {width * finer}x{height * finer}",
        f"free at {above}",
        "ask for fewer (--num), or choose another --out",
    )


def _join(parts: Parts, request: Request, out: Path) -> None:
    """One file of all parts, by one process at a time; another one may have done it already."""
    try:
        lock = (parts.folder / ".lock").open("w")
    except FileNotFoundError:
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            labels = labels_at(request.rule, range(parts.n), request.classes, request.settings.seed)
            files.write_npz(out, parts.images(), labels, parts.request, parts.n)
        shutil.rmtree(parts.folder, ignore_errors=True)


def _origin(path: Path) -> object:
    try:
        with np.load(path, allow_pickle=False) as file:
            return old.protocol(json.loads(str(file["origin"])))
    except Exception:  # any file that is none of ours
        return None
